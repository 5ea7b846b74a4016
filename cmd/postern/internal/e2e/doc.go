// Package e2e holds the tests of the whole program, in real namespaces.
//
// The tests build the program once and run it as a user would: from a command
// line, as an ordinary user, on a machine that has a neighbour. Both are network
// namespaces that the tests make and that vanish with them:
//
//	"remote" 10.98.0.2 fd98::2 ──veth── 10.98.0.1 fd98::1 "host" ── postern ── container
//
// The test process itself lives on the host's side, in a PID and mount namespace
// of its own too, so that every process it sees is one that the tests started,
// and /etc may be changed at will. Servers of the remote are sockets that the
// test process opened there.
//
// Run by root, the tests become the user that POSTERN_TEST_USER names (ci) for
// every postern; run by anybody else, the whole stage is put into a user
// namespace, in which postern runs as uid 0 with a single id.
//
//	go test ./cmd/postern/internal/e2e                                     all
//	go test -v -run TestLifecycle ./cmd/postern/internal/e2e               with figures
//	POSTERN_E2E_LARGE=1 go test -v -run TestTransfer ./cmd/postern/internal/e2e   1 GiB transfers
//	POSTERN_E2E_LARGE=1 go test -v -run TestPublished -timeout 30m ./cmd/postern/internal/e2e
//	    published ports: 16,000 idle connections, 100,000 in a row, 10 minutes of wrk
//	POSTERN_E2E_LARGE=1 go test -v -run 'TestTruth|TestExpress' -timeout 30m ./cmd/postern/internal/e2e
//	    the express path: an idle minute, 20,000 connects, more datagrams
//	POSTERN_E2E_LARGE=1 go test -v -run TestBundleStory -timeout 30m ./cmd/postern/internal/e2e
//	    bundles: 100 reruns with each runtime
//	go test -v -run 'TestPodman$|TestDropin' ./cmd/postern/internal/e2e     tables of real callers
//	POSTERN_E2E_LARGE=1 go test -v -run TestPodmanFigures ./cmd/postern/internal/e2e
//	    Podman with our slirp4netns and with its own: start time and throughput
//	POSTERN_E2E_RACE=1  go test ./cmd/postern/internal/e2e                 program with race detector
//	POSTERN_E2E_PROGRAM=FILE go test ./cmd/postern/internal/e2e            program that exists
package e2e
