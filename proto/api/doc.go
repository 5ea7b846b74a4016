// Package api has the bodies of an instance's control socket: requests and answers
// below /v1/postern/ports, and the strict reading of any JSON body. The bodies of
// RootlessKit's API below /v1 are RootlessKit's own types (its packages pkg/api and
// pkg/port).
//
// Fields may be added; readers ignore those that they do not know.
package api
