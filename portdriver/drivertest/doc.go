// Package drivertest is the conformance suite of port drivers: what a published port
// owes to clients, to servers and to its host, whoever brings the bytes.
//
// A test file of a driver says how it is started and what it claims, and runs the
// suite:
//
//	var harness = drivertest.Harness{Name: "splice", Start: start, Claims: …}
//
//	func TestMain(m *testing.M)         { os.Exit(drivertest.Main(m, harness)) }
//	func TestConformance(t *testing.T)  { drivertest.Run(t, harness) }
//
// # The world
//
// Main executes the test binary once more in a user and network namespace of its own,
// so that the suite needs no privilege and touches no network but those it made:
//
//	remote                host                      container
//	192.0.2.2 ───veth─── 192.0.2.1                 10.0.2.100, fd00::100 on tap0
//	2001:db8:1::2        2001:db8:1::1, loopback   127.0.0.1, ::1
//	clients              clients, the driver       servers
//
// The container has a user namespace of its own, as it has in earnest, with a process
// in it that makes sockets there on request. The suite itself stays in the host's
// namespaces: clients and servers are its goroutines, on sockets that belong to the
// namespaces in which they were made.
//
// The driver runs in a process of its own, so that its descriptors can be counted
// and its limit of them lowered without starving the clients.
//
// # Claims
//
// A case that needs a Feature which the driver does not claim is left out, and Run
// logs which. What is not a Feature is owed by every driver.
package drivertest
