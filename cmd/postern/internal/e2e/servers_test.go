package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
)

// Ports of the remote's servers, the classic ones of RFC 862 to 864 where they fit.
const (
	portEcho   = "7"  // TCP and UDP: what comes goes back
	portSink   = "9"  // TCP: reads to the end, then answers with the SHA-256
	portSource = "19" // TCP: sends stream(sourceSize) and FIN, then reads to the end
	portHTTP   = "80"
	portClosed = "81"
	portNginx  = "8080"
	portIperf  = "5201"
)

// sourceSize is how much portSource sends, bytes.
const sourceSize = 3 << 20

// servers are what the remote serves.
type servers struct {
	// late gets the SHA-256 of what portSource's clients sent after its FIN.
	late chan string
}

// serve starts the remote's servers. They end with the test process.
func serve(ns *netns) (*servers, error) {
	s := &servers{late: make(chan string, 64)}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, greeting) })
	mux.HandleFunc("GET /bytes/{n}", func(w http.ResponseWriter, r *http.Request) {
		n, _ := strconv.ParseInt(r.PathValue("n"), 10, 64)
		w.Header().Set("Content-Length", r.PathValue("n"))
		_, _ = io.CopyN(w, stream(), n)
	})
	mux.HandleFunc("POST /sum", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(w, sum(r.Body))
	})
	return s, ns.do(func() error {
		for port, handle := range map[string]func(*net.TCPConn){portEcho: echoTCP, portSink: sink, portSource: s.source} {
			l, err := net.Listen("tcp", ":"+port)
			if err != nil {
				return err
			}
			go acceptAll(l, handle)
		}
		l, err := net.Listen("tcp", ":"+portHTTP)
		if err != nil {
			return err
		}
		go func() { _ = http.Serve(l, mux) }()
		for _, addr := range []string{remote4, remote6} {
			u, err := net.ListenPacket("udp", net.JoinHostPort(addr, portEcho))
			if err != nil {
				return err
			}
			go echoUDP(u)
		}
		return serveDNS()
	})
}

// greeting is what the remote's HTTP server says.
const greeting = "hello from the remote"

func acceptAll(l net.Listener, handle func(*net.TCPConn)) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			handle(c.(*net.TCPConn))
		}()
	}
}

func echoTCP(c *net.TCPConn) {
	_, _ = io.Copy(c, c)
	_ = c.CloseWrite()
}

// sink answers after its client's FIN: one direction still flows when the other
// has ended.
func sink(c *net.TCPConn) {
	fmt.Fprintln(c, sum(c))
	_ = c.CloseWrite()
}

// source reads on after its own FIN: the same the other way round.
func (s *servers) source(c *net.TCPConn) {
	if _, err := io.CopyN(c, stream(), sourceSize); err != nil {
		s.late <- err.Error()
		return
	}
	_ = c.CloseWrite()
	s.late <- sum(c)
}

func echoUDP(c net.PacketConn) {
	_ = c.(*net.UDPConn).SetReadBuffer(4 << 20)
	b := make([]byte, 64<<10)
	for {
		n, from, err := c.ReadFrom(b)
		if err != nil {
			return
		}
		_, _ = c.WriteTo(b[:n], from)
	}
}

// stream is an endless pseudo-random stream, the same each time.
func stream() io.Reader { return rand.NewChaCha8([32]byte{'p', 'o', 's', 't', 'e', 'r', 'n'}) }

// sum returns the SHA-256 and the length of what r holds.
func sum(r io.Reader) string {
	h := sha256.New()
	n, err := io.Copy(struct{ io.Writer }{h}, r)
	if err != nil {
		return "error after " + strconv.FormatInt(n, 10) + " bytes: " + err.Error()
	}
	return digest(h, n)
}

func digest(h hash.Hash, n int64) string {
	return fmt.Sprintf("%s %d", hex.EncodeToString(h.Sum(nil)), n)
}

// sumOf returns the sum of the stream's first n bytes.
func sumOf(n int64) string { return sum(io.LimitReader(stream(), n)) }
