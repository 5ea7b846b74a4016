package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"
)

// cmdServe serves "served" over HTTP on the loopback of the script's host, and
// sets $NAME to the port. It ends with the script.
func cmdServe(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: serve NAME")
	}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	ts.Check(err)
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "served\n") // a client that left is the client's test
	})}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = s.Serve(l) // until closed
	}()
	ts.Defer(func() {
		_ = s.Close()
		<-ended
	})
	ts.Setenv(args[0], strconv.Itoa(l.Addr().(*net.TCPAddr).Port))
}

// fetchMain prints what the URLs that are its arguments yield, as curl does; the
// scripts must not depend on curl. unix:PATH is the root of a server on a socket.
func fetchMain() {
	client := &http.Client{Timeout: patience}
	for _, url := range os.Args[1:] {
		if err := fetch(client, url); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
}

func fetch(client *http.Client, url string) error {
	if path, ok := strings.CutPrefix(url, "unix:"); ok {
		url = "http://unix/"
		client = &http.Client{Timeout: patience, Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "unix", path)
			},
		}}
	}
	r, err := client.Get(url)
	if err != nil {
		return err
	}
	defer r.Body.Close()
	_, err = io.Copy(os.Stdout, r.Body)
	return err
}
