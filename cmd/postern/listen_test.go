package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"

	"github.com/rogpeppe/go-internal/testscript"
)

// listenMain serves HTTP on its arguments, addresses or unix:PATH, and says whom it
// serves: a container's server.
func listenMain() {
	ended := make(chan error)
	for _, where := range os.Args[1:] {
		network, addr := "tcp", where
		if path, ok := strings.CutPrefix(where, "unix:"); ok {
			network, addr = "unix", path
		}
		l, err := net.Listen(network, addr)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		go func() { ended <- http.Serve(l, http.HandlerFunc(serveClient)) }()
	}
	fmt.Fprintln(os.Stderr, <-ended)
	os.Exit(1)
}

func serveClient(w http.ResponseWriter, r *http.Request) {
	client, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		client = "a socket"
	}
	fmt.Fprintln(w, "served to", client)
}

// freePorts hands out port numbers of the scripts' host, each once.
var freePorts struct {
	sync.Mutex
	last int
}

// The port numbers that freePort hands out. They lie below those that the kernel gives
// out by itself (ip_local_port_range, ip(7)): between the moment in which a port is
// found to be free and its use, the sockets of other scripts could come by such a one.
const (
	firstFreePort = 10240
	freePortCount = 20000
)

// freePort finds a port that nobody has, in either family.
func freePort() (int, error) {
	freePorts.Lock()
	defer freePorts.Unlock()
	if freePorts.last == 0 {
		// Where the host is not the test's own, another process may run the same.
		freePorts.last = rand.IntN(freePortCount)
	}
	var err error
	for range 100 {
		freePorts.last++
		port := firstFreePort + freePorts.last%freePortCount
		var l net.Listener
		// What is free on [::] is free on every address.
		if l, err = net.Listen("tcp", ":"+strconv.Itoa(port)); err == nil {
			return port, l.Close()
		}
	}
	return 0, errors.Join(errors.New("no free port"), err)
}

// cmdFreePort sets variables to port numbers that nobody has on the script's host.
func cmdFreePort(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: freeport NAME...")
	}
	for _, name := range args {
		port, err := freePort()
		ts.Check(err)
		ts.Setenv(name, strconv.Itoa(port))
	}
}
