package resolve

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/postern-net/postern/proto/dns"
	"github.com/postern-net/postern/stack/internal/flow"
)

func TestIdleStreamsHoldUpNobody(t *testing.T) {
	query := packQuery(t, "example.com.", mdns.TypeA)
	right := packResponse(t, query, nil, "example.com. 5 IN A 198.51.100.1")
	f := newForwarder(t, startUpstream(t, always(right)).addr())
	for i := range 100 {
		conn := client(t, f)
		if i%2 == 0 {
			conn.Write([]byte{0, 40, 1}) // the start of a query
		}
	}
	busy := client(t, f)
	for range 20 {
		if got := queryTCP(t, busy, query); !bytes.Equal(got, right) {
			t.Fatalf("over TCP: %x", got)
		}
		if got := queryUDP(t, f, query); !bytes.Equal(got, right) {
			t.Fatalf("over UDP: %x", got)
		}
	}
}

func TestPipelinedQueriesAreAnsweredOutOfOrder(t *testing.T) {
	slow, quick := packQuery(t, "slow.example.", mdns.TypeA), packQuery(t, "quick.example.", mdns.TypeA)
	release := make(chan struct{})
	u := startUpstream(t, func(q []byte, _ netip.AddrPort) [][]byte {
		if bytes.Contains(q, []byte("slow")) {
			<-release
		}
		return [][]byte{dns.AnswerAddrs(q, []netip.Addr{netip.MustParseAddr("198.51.100.1")}, 5)}
	})
	conn := client(t, newForwarder(t, u.addr()))
	for _, q := range [][]byte{withID(slow, 1), withID(quick, 2), withID(quick, 3)} {
		if err := dns.WriteMessage(conn, q); err != nil {
			t.Fatal(err)
		}
	}
	seen := map[uint16]bool{}
	for i := range 3 {
		if i == 2 {
			if seen[1] || !seen[2] || !seen[3] {
				t.Errorf("answered first: %v", seen)
			}
			close(release)
		}
		response, err := dns.ReadMessage(conn, dns.MaxMessage)
		if err != nil {
			t.Fatal(err)
		}
		seen[dns.ID(response)] = true
	}
	if !seen[1] {
		t.Errorf("answered: %v", seen)
	}
}

func TestHalfClosedStreamGetsItsAnswers(t *testing.T) {
	query := packQuery(t, "example.com.", mdns.TypeA)
	right := packResponse(t, query, nil, "example.com. 5 IN A 198.51.100.1")
	conn := client(t, newForwarder(t, startUpstream(t, always(right)).addr()))
	for range 3 {
		if err := dns.WriteMessage(conn, query); err != nil {
			t.Fatal(err)
		}
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if got, err := dns.ReadMessage(conn, dns.MaxMessage); err != nil || !bytes.Equal(got, right) {
			t.Fatalf("%x, %v", got, err)
		}
	}
	if _, err := dns.ReadMessage(conn, dns.MaxMessage); !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %v", err)
	}
}

func TestMalformedQueryOnStream(t *testing.T) {
	conn := client(t, newForwarder(t))
	bad := packQuery(t, "example.com.", mdns.TypeA)
	if got := queryTCP(t, conn, bad[:len(bad)-1]); dns.Rcode(got) != dns.RcodeFormErr {
		t.Errorf("got %x", got)
	}
	conn.Write([]byte{0xff, 0xff}) // longer than any query
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("after a length of 65535: %v", err)
	}
}

// inPipe runs ServeTCP on one end of a pipe in a bubble and gives the other.
func (b bed) inPipe() (client net.Conn, done <-chan struct{}) {
	client, served := net.Pipe()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		b.ServeTCP(b.Context(), served)
	}()
	return client, ended
}

func TestIdleStreamIsClosed(t *testing.T) {
	inBed(t, nil, nil, func(b bed) {
		begun := time.Now()
		_, done := b.inPipe()
		<-done
		if took := time.Since(begun); took != idleTimeout {
			b.Errorf("closed after %s", took)
		}
	})
}

func TestStreamThatTakesNoAnswersIsClosed(t *testing.T) {
	inBed(t, map[netip.AddrPort]behaviour{serverA: answersAddr("198.51.100.1", 0)}, []netip.AddrPort{serverA}, func(b bed) {
		conn, done := b.inPipe()
		query := packQuery(b.T, "example.com.", 1)
		written := 0
		go func() {
			for dns.WriteMessage(conn, query) == nil {
				written++
			}
		}()
		synctest.Wait()
		if n := len(b.slots); n != 0 {
			b.Errorf("%d places among all queries are held up", n)
		}
		begun := time.Now()
		<-done
		synctest.Wait()
		if took := time.Since(begun); took > idleTimeout {
			b.Errorf("closed after %s", took)
		}
		if written > maxPipelined+1 {
			b.Errorf("%d queries were taken", written)
		}
		if got := b.ask(); got.Addr == "" {
			b.Errorf("afterwards: %+v", got)
		}
	})
}

func TestStreamsAreBoundedAndCounted(t *testing.T) {
	inBed(t, nil, nil, func(b bed) {
		for range flow.MaxDNSConns {
			b.inPipe()
		}
		synctest.Wait()
		begun := time.Now()
		_, refused := b.inPipe()
		<-refused
		if n := b.counters.Load(flow.DNSRefusedLimit); n != 1 || time.Since(begun) != 0 {
			b.Errorf("counted %d refusals, after %s", n, time.Since(begun))
		}
	})
}

func TestCloseEndsStreams(t *testing.T) {
	inBed(t, map[netip.AddrPort]behaviour{serverA: silent}, []netip.AddrPort{serverA}, func(b bed) {
		begun := time.Now()
		conn, busy := b.inPipe()
		_, idle := b.inPipe()
		if err := dns.WriteMessage(conn, packQuery(b.T, "example.com.", 1)); err != nil {
			b.Error(err)
		}
		synctest.Wait()
		b.Close()
		<-busy
		<-idle
		_, late := b.inPipe()
		<-late
		if took := time.Since(begun); took != 0 {
			b.Errorf("took %s", took)
		}
	})
}
