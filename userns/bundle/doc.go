// Package bundle edits the config.json of an OCI bundle (runtime-spec, "config.md")
// so that a runtime without any notion of networks, runc or crun, starts its
// containers with one.
//
// # What a prepared bundle says
//
//	linux.namespaces      a network namespace, and a user namespace if ids are mapped
//	linux.uid-,gidMappings  the ids of Plan
//	linux.sysctl          ports below 1024 and ping for the container's ordinary users
//	process.capabilities  with more than one id: those that change ids and owners
//	mounts                resolv.conf and hosts of the container's own
//	hooks                 Plan's, at createRuntime, createContainer and poststop
//	annotations           Plan's, and no others of our prefix
//
// Everything else stays as it is, in its order: objects are kept as lists of
// members with their values as text, and only members that change are written anew.
//
// # What is kept beside it
//
//	BUNDLE/.postern/config.json    config.json before the edit, its very bytes
//	BUNDLE/.postern/config.sha256  of config.json after the edit (sha256sum(1))
//	BUNDLE/.postern/resolv.conf    mounted over the container's /etc/resolv.conf
//	BUNDLE/.postern/hosts          mounted over the container's /etc/hosts
//	BUNDLE/.postern/error          why the last hook failed, where the runtime
//	                               throws away what its hooks say (crun)
//
// The two files stand in the bundle and not in an instance's directory because a
// runtime mounts before it calls the first hook, and because a bundle outlives the
// runtime directory of a login. All containers of a bundle share them, read-only:
// what they say depends on the plan and on the host, not on the container.
//
// Prepare starts from the kept bytes as long as config.json is what the last
// Prepare wrote. If somebody has edited it since, what is ours is taken out of the
// edited text, and that becomes the original. Undo does the same, so that it never
// loses an edit; without one it restores the bytes.
//
// # Whose word counts
//
// The tools that make bundles copy an image's labels into the annotations
// (image-spec, "conversion.md"). An image can therefore carry annotations of our
// prefix. Prepare removes all of them before it writes the caller's.
package bundle

import "errors"

// ErrNotPrepared is wrapped when there is nothing to undo.
var ErrNotPrepared = errors.New("the bundle is not prepared")

// Names in the bundle.
const (
	configFile = "config.json"
	// SideDir is the directory of what is kept beside config.json.
	SideDir = ".postern"

	sumFile    = "config.sha256"
	resolvFile = "resolv.conf"
	hostsFile  = "hosts"
	errorFile  = "error"
)

// maxConfig bounds what is read of a config.json; those of runc and umoci have some
// kilobytes, generated seccomp rules some hundred.
const maxConfig = 8 << 20

// Annotations of ours.
const (
	// Prefix is what all of them begin with.
	Prefix = "io.postern."
	// PublishAnnotation holds port specs, separated by blanks.
	PublishAnnotation = Prefix + "publish"
	// HostIPAnnotation is the host address of published ports that name none.
	HostIPAnnotation = Prefix + "host-ip"
	// ExposedAnnotation is the image's list of ports that its services listen on
	// (image-spec, "annotations.md").
	ExposedAnnotation = "org.opencontainers.image.exposedPorts"
)
