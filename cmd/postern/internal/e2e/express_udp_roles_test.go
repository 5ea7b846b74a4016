package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// datagramSizes are the sizes of the flow's datagrams, bytes, in turn.
var datagramSizes = []int{1, 2, 100, 512, 1200, 1232, 1452, 1472, 1473, 4000, 9000, 32000, 60000}

// datagram is the nth one of a flow.
func datagram(n int) []byte {
	b := bytes.Repeat([]byte{byte(n)}, datagramSizes[n%len(datagramSizes)])
	if len(b) >= 8 {
		copy(b, fmt.Sprintf("%08d", n))
	}
	return b
}

// tapPackets returns how many packets tap0 has sent and received.
func tapPackets() (sent, received int) {
	b, err := os.ReadFile("/proc/self/net/dev") // proc_net(5)
	if err != nil {
		return 0, 0
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 10 && f[0] == "tap0:" {
			received, _ = strconv.Atoi(f[2])
			sent, _ = strconv.Atoi(f[10])
		}
	}
	return sent, received
}

// exchange sends datagrams from..to to an echo server, a few under way at a time, and
// wants each back once, in order. It returns how many did not come within a limit.
func exchange(c net.Conn, from, to int, limit time.Duration) (lost int, err error) {
	const window, bytesUnderWay = 8, 64 << 10
	in := make([]byte, 64<<10)
	next, underWay := from, 0 // next to send; bytes under way
	for wanted := from; wanted < to; wanted++ {
		// The first is alone: what kernels keep back until a neighbour is known is
		// overtaken by what follows, on any network (arp(7), unres_qlen).
		window := window
		if wanted == from {
			window = 1
		}
		for next < to && next-wanted < window && (underWay == 0 || underWay+len(datagram(next)) < bytesUnderWay) {
			if _, err := c.Write(datagram(next)); err != nil {
				return lost, fmt.Errorf("send datagram %d: %w", next, err)
			}
			underWay += len(datagram(next))
			next++
		}
		_ = c.SetReadDeadline(time.Now().Add(limit))
		n, readErr := c.Read(in)
		if errors.Is(readErr, os.ErrDeadlineExceeded) {
			lost += next - wanted // all that is under way
			wanted, underWay = next-1, 0
			continue
		}
		if readErr != nil {
			return lost, fmt.Errorf("receive datagram %d: %w", wanted, readErr)
		}
		underWay -= n
		if !bytes.Equal(in[:n], datagram(wanted)) {
			err = errors.Join(err, fmt.Errorf("instead of datagram %d of %d bytes came %d bytes: %.8q", wanted, len(datagram(wanted)), n, in[:n]))
		}
	}
	return lost, err
}

// datagramsRole: ADDRESS COUNT [lax] — exchanges so many datagrams of all sizes, prints
// "ready" and how many packets that took on the interface, and at the end of its input
// does it again. If it is lax, what is lost does not matter.
func datagramsRole(args []string) error {
	count, _ := strconv.Atoi(args[1])
	lax, limit := len(args) > 2, patience
	if lax {
		limit = time.Second
	}
	c, err := net.Dial("udp", net.JoinHostPort(args[0], portEcho))
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.(*net.UDPConn).SetReadBuffer(4 << 20)
	for turn := range 2 {
		sent, received := tapPackets()
		start := time.Now()
		lost, err := exchange(c, turn*count, (turn+1)*count, limit)
		nowSent, nowReceived := tapPackets()
		fmt.Printf("%s%d datagrams each way in %v, %d lost; packets on the interface: %d out, %d in\n", []string{"ready ", ""}[turn], count,
			time.Since(start).Round(time.Millisecond), lost, nowSent-sent, nowReceived-received)
		if !lax && (err != nil || lost > 0) {
			return fmt.Errorf("%d datagrams of %d lost, %w", lost, count, err)
		}
		if turn == 0 {
			_, _ = io.Copy(io.Discard, os.Stdin)
		}
	}
	return nil
}

// unmapped is the address without its IPv6 form, if it is one of IPv4.
func unmapped(from net.Addr) string {
	a := from.(*net.UDPAddr).AddrPort()
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()).String()
}

// mappingRole: WITNESS... — one socket exchanges datagrams with many witnesses, prints
// "ready" with the addresses that these saw of it first and later, and at the end of
// its input, from whom else datagrams came.
func mappingRole(witnesses []string) error {
	c, err := net.ListenPacket("udp", ":0")
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.(*net.UDPConn).SetReadBuffer(4 << 20)
	b := make([]byte, 2048)
	var saw [2]map[string]bool
	for turn := range 2 {
		saw[turn] = map[string]bool{}
		for n := range []int{1, 60}[turn] {
			for _, w := range witnesses {
				to := net.UDPAddrFromAddrPort(netip.MustParseAddrPort(w))
				said := fmt.Sprint(turn, " ", n)
				if _, err := c.WriteTo([]byte(said), to); err != nil {
					return err
				}
				_ = c.SetReadDeadline(time.Now().Add(patience))
				got, from, err := c.ReadFrom(b)
				if err != nil {
					return fmt.Errorf("%s, datagram %s: %w", w, said, err)
				}
				mapped, echo, _ := strings.Cut(string(b[:got]), "\n")
				if unmapped(from) != w || echo != said {
					return fmt.Errorf("%s, datagram %s: %q from %v", w, said, b[:got], from)
				}
				saw[turn][mapped] = true
			}
		}
	}
	list := func(m map[string]bool) string { return strings.Join(slices.Sorted(maps.Keys(m)), ",") }
	fmt.Println("ready", list(saw[0]), list(saw[1]))
	strangers := make(chan string)
	go func() {
		found := map[string]bool{}
		for {
			_ = c.SetReadDeadline(time.Now().Add(within))
			_, from, err := c.ReadFrom(b)
			if err != nil {
				strangers <- list(found)
				return
			}
			found[unmapped(from)] = true
		}
	}()
	_, _ = io.Copy(io.Discard, os.Stdin)
	time.Sleep(quiet)
	c.Close()
	fmt.Println(<-strangers)
	return nil
}

// refusalRole: ADDRESS:PORT — exchanges datagrams with a witness, tells it to go, and
// prints what its socket sees then.
func refusalRole(args []string) error {
	c, err := net.Dial("udp", args[0])
	if err != nil {
		return err
	}
	defer c.Close()
	for n := range 100 {
		if _, err := c.Write([]byte(fmt.Sprint(n))); err != nil {
			return err
		}
		_ = c.SetReadDeadline(time.Now().Add(patience))
		if _, err := c.Read(make([]byte, 100)); err != nil {
			return fmt.Errorf("datagram %d: %w", n, err)
		}
	}
	sent, _ := tapPackets()
	if _, err := c.Write([]byte("go")); err != nil {
		return err
	}
	for n, end := 0, time.Now().Add(patience); time.Now().Before(end); n++ {
		_ = c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		_, err := c.Read(make([]byte, 100))
		if err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			_, err = c.Write([]byte("anybody?"))
		}
		if err != nil {
			now, _ := tapPackets()
			fmt.Printf("%s after %d more datagrams, %d packets on the interface", errorName(err), n, now-sent)
			return nil
		}
	}
	return errors.New("nobody says that the server has gone")
}

// crowdRole: ADDRESS SOCKETS ROUNDS PORT... — so many sockets, each with so many echo
// servers, exchange a few datagrams in every round, one flow after the other. Prints
// how many were lost.
func crowdRole(args []string) error {
	sockets, _ := strconv.Atoi(args[1])
	rounds, _ := strconv.Atoi(args[2])
	const workers = 8
	var mu sync.Mutex
	var all sync.WaitGroup
	sent, lost, wrong := 0, 0, error(nil)
	for w := range workers {
		all.Go(func() {
			s, l, err := crowdPart(args[0], args[3:], (sockets+workers-1-w)/workers, rounds)
			mu.Lock()
			defer mu.Unlock()
			sent, lost, wrong = sent+s, lost+l, errors.Join(wrong, err)
		})
	}
	all.Wait()
	fmt.Printf("%d datagrams each way over %d flows, %d lost", sent, sockets*len(args[3:]), lost)
	return wrong
}

func crowdPart(addr string, ports []string, sockets, rounds int) (sent, lost int, err error) {
	var all []*net.UDPConn
	for range sockets {
		c, err := net.ListenUDP("udp", nil)
		if err != nil {
			return sent, lost, err
		}
		defer c.Close()
		all = append(all, c)
	}
	b := make([]byte, 2048)
	for round := range rounds {
		for n, c := range all {
			for _, port := range ports {
				to := netip.MustParseAddrPort(net.JoinHostPort(addr, port))
				for k := range 6 {
					said := fmt.Sprint(round, " ", n, " ", k, " ", port)
					if _, err := c.WriteToUDPAddrPort([]byte(said), to); err != nil && !errors.Is(err, unix.ECONNREFUSED) {
						return sent, lost, err
					}
					sent++
					_ = c.SetReadDeadline(time.Now().Add(patience))
					got, _, err := c.ReadFromUDPAddrPort(b)
					switch {
					case err != nil:
						lost++
					case string(b[:got]) != said:
						return sent, lost, fmt.Errorf("%q instead of %q", b[:got], said)
					}
				}
			}
		}
	}
	return sent, lost, nil
}
