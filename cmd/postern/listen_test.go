package main

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"

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

// cmdFreePort sets variables to port numbers that nobody has on the script's host.
func cmdFreePort(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: freeport NAME...")
	}
	for _, name := range args {
		// Of both families: what is free on [::] is free on every address.
		l, err := net.Listen("tcp", ":0")
		ts.Check(err)
		defer l.Close() // all at the end, so that they differ
		ts.Setenv(name, strconv.Itoa(l.Addr().(*net.TCPAddr).Port))
	}
}
