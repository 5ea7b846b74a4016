package resolve

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/postern-net/postern/proto/dns"
)

// patience is how long a test waits for what must happen.
const patience = 20 * time.Second

// upstream is a name server on loopback that answers with bytes made by the
// test, over UDP and TCP on the same port.
type upstream struct {
	udp *net.UDPConn
	tcp *net.TCPListener
	// respond returns the datagrams or messages to send back for a query. from
	// is the client's UDP address, invalid over TCP.
	respond func(query []byte, from netip.AddrPort) [][]byte

	wg      sync.WaitGroup
	mu      sync.Mutex
	queries [][]byte
	conns   []net.Conn
}

func startUpstream(t *testing.T, respond func(query []byte, from netip.AddrPort) [][]byte) *upstream {
	t.Helper()
	tcp, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	udp, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: tcp.Addr().(*net.TCPAddr).Port})
	if err != nil {
		tcp.Close()
		t.Fatal(err)
	}
	u := &upstream{udp: udp, tcp: tcp, respond: respond}
	u.wg.Go(u.serveUDP)
	u.wg.Go(u.serveTCP)
	t.Cleanup(u.close)
	return u
}

// always answers every query with the same bytes, under the query's identifier.
func always(response []byte) func([]byte, netip.AddrPort) [][]byte {
	return func(query []byte, _ netip.AddrPort) [][]byte {
		r := bytes.Clone(response)
		dns.SetID(r, dns.ID(query))
		return [][]byte{r}
	}
}

func (u *upstream) addr() netip.AddrPort { return u.udp.LocalAddr().(*net.UDPAddr).AddrPort() }

func (u *upstream) close() {
	u.udp.Close()
	u.tcp.Close()
	u.mu.Lock()
	for _, c := range u.conns {
		c.Close()
	}
	u.mu.Unlock()
	u.wg.Wait()
}

func (u *upstream) note(query []byte) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.queries = append(u.queries, bytes.Clone(query))
}

// received returns the queries so far.
func (u *upstream) received() [][]byte {
	u.mu.Lock()
	defer u.mu.Unlock()
	return slices.Clone(u.queries)
}

func (u *upstream) serveUDP() {
	buf := make([]byte, dns.MaxMessage)
	for {
		n, from, err := u.udp.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // a client that has gone
		}
		u.note(buf[:n])
		for _, r := range u.respond(buf[:n], from) {
			u.udp.WriteToUDPAddrPort(r, from)
		}
	}
}

func (u *upstream) serveTCP() {
	for {
		conn, err := u.tcp.Accept()
		if err != nil {
			return
		}
		u.mu.Lock()
		u.conns = append(u.conns, conn)
		u.mu.Unlock()
		u.wg.Go(func() {
			defer conn.Close()
			for {
				query, err := dns.ReadMessage(conn, dns.MaxMessage)
				if err != nil {
					return
				}
				u.note(query)
				for _, r := range u.respond(query, netip.AddrPort{}) {
					dns.WriteMessage(conn, r)
				}
			}
		})
	}
}

// newForwarder returns a forwarder over real sockets that is closed with the test.
func newForwarder(t *testing.T, upstreams ...netip.AddrPort) *Forwarder {
	t.Helper()
	f := New(Config{Upstreams: upstreams, Local: ownNames})
	t.Cleanup(func() { f.Close() })
	return f
}

// queryUDP sends a query and waits for the reply.
func queryUDP(t *testing.T, f *Forwarder, query []byte) []byte {
	t.Helper()
	replies := make(chan []byte, 1)
	f.Query(query, func(r []byte) { replies <- r })
	select {
	case r := <-replies:
		return r
	case <-time.After(patience):
		t.Fatal("no reply")
		return nil
	}
}

// client opens a stream to the forwarder.
func client(t *testing.T, f *Forwarder) net.Conn {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err := net.Dial("tcp4", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	served, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		f.ServeTCP(t.Context(), served)
	}()
	t.Cleanup(func() {
		conn.Close()
		select {
		case <-done:
		case <-time.After(patience):
			t.Error("ServeTCP did not return")
		}
	})
	conn.SetDeadline(time.Now().Add(patience))
	return conn
}

func queryTCP(t *testing.T, conn net.Conn, query []byte) []byte {
	t.Helper()
	if err := dns.WriteMessage(conn, query); err != nil {
		t.Fatal(err)
	}
	response, err := dns.ReadMessage(conn, dns.MaxMessage)
	if err != nil {
		t.Fatal(err)
	}
	return response
}

// packResponse builds a response from records in zone file form.
func packResponse(t *testing.T, query []byte, change func(*mdns.Msg), records ...string) []byte {
	t.Helper()
	var q mdns.Msg
	if err := q.Unpack(query); err != nil {
		t.Fatal(err)
	}
	m := new(mdns.Msg).SetReply(&q)
	m.Compress = true
	for _, r := range records {
		rr, err := mdns.NewRR(r)
		if err != nil {
			t.Fatal(err)
		}
		m.Answer = append(m.Answer, rr)
	}
	if change != nil {
		change(m)
	}
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// withID returns msg under another identifier.
func withID(msg []byte, id uint16) []byte {
	msg = slices.Clone(msg)
	dns.SetID(msg, id)
	return msg
}
