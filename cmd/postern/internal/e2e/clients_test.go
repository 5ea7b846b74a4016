package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// fetchRole: URL... — prints each page.
func fetchRole(urls []string) error {
	client := http.Client{Timeout: patience}
	for _, url := range urls {
		r, err := client.Get(url)
		if err != nil {
			return err
		}
		body, err := io.ReadAll(r.Body)
		r.Body.Close()
		if err != nil || r.StatusCode != http.StatusOK {
			return fmt.Errorf("%s: %s, %w", url, r.Status, err)
		}
		fmt.Print(string(body))
	}
	return nil
}

// transferRole: ADDRESS BYTES — sends that much to the sink and fetches that much
// from the HTTP server, and compares hashes. Prints both rates.
func transferRole(args []string) error {
	n, err := strconv.ParseInt(args[1], 10, 64)
	if err != nil {
		return err
	}
	want := sumOf(n)
	start := time.Now()
	got, err := upload(args[0], n)
	if err != nil || got != want {
		return fmt.Errorf("sent %s, the sink got %s (%w)", want, got, err)
	}
	up := time.Since(start)
	start = time.Now()
	r, err := http.Get("http://" + net.JoinHostPort(args[0], portHTTP) + "/bytes/" + args[1])
	if err != nil {
		return err
	}
	defer r.Body.Close()
	if got := sum(r.Body); got != want {
		return fmt.Errorf("got %s, want %s", got, want)
	}
	rate := func(d time.Duration) float64 { return float64(n) * 8 / d.Seconds() / 1e9 }
	fmt.Printf("out %.2f Gb/s, in %.2f Gb/s (generated and hashed on this machine)", rate(up), rate(time.Since(start)))
	return nil
}

// upload sends n bytes to the sink and returns what it says they were. Half of the
// connection is closed by then.
func upload(addr string, n int64) (string, error) {
	c, err := net.Dial("tcp", net.JoinHostPort(addr, portSink))
	if err != nil {
		return "", err
	}
	defer c.Close()
	if _, err := io.CopyN(c, stream(), n); err != nil {
		return "", err
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return "", err
	}
	answer, err := io.ReadAll(c)
	return strings.TrimSpace(string(answer)), err
}

// udpEchoRole: ADDRESS SIZE COUNT — each datagram must come back whole.
func udpEchoRole(args []string) error {
	size, _ := strconv.Atoi(args[1])
	count, _ := strconv.Atoi(args[2])
	c, err := net.Dial("udp", net.JoinHostPort(args[0], portEcho))
	if err != nil {
		return err
	}
	defer c.Close()
	sent, got := make([]byte, size), make([]byte, 64<<10)
	random := stream()
	for i := range count {
		if _, err := io.ReadFull(random, sent); err != nil {
			return err
		}
		if _, err := c.Write(sent); err != nil {
			return fmt.Errorf("datagram %d: %w", i, err)
		}
		_ = c.SetReadDeadline(time.Now().Add(patience))
		n, err := c.Read(got)
		if err != nil || !bytes.Equal(got[:n], sent) {
			return fmt.Errorf("datagram %d of %d bytes: %d bytes came back (%w)", i, size, n, err)
		}
	}
	return nil
}

// manyRole: CLIENTS CONNECTIONS ADDRESS... — so many connections in a row from so
// many clients, each to the next address, each echoing its own number.
func manyRole(args []string) error {
	clients, _ := strconv.Atoi(args[0])
	total, _ := strconv.Atoi(args[1])
	addrs := args[2:]
	errs := make(chan error, clients)
	start := time.Now()
	for c := range clients {
		go func() {
			var err error
			for i := c; i < total && err == nil; i += clients {
				err = oneEcho(addrs[i%len(addrs)], fmt.Sprintf("connection %d of client %d", i, c))
			}
			errs <- err
		}()
	}
	var err error
	for range clients {
		err = errors.Join(err, <-errs)
	}
	fmt.Printf("%.0f connections/s", float64(total)/time.Since(start).Seconds())
	return err
}

// oneEcho opens a connection, sends text, and reads it back until the end.
func oneEcho(addr, text string) error {
	c, err := net.DialTimeout("tcp", net.JoinHostPort(addr, portEcho), patience)
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c, text); err != nil {
		return err
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return err
	}
	back, err := io.ReadAll(c)
	if err != nil || string(back) != text {
		return fmt.Errorf("%s: %q came back (%w)", text, back, err)
	}
	return nil
}

// lateSize is what halfCloseRole sends after the server's FIN.
const lateSize = 5 << 20

// halfCloseRole: ADDRESS — the container ends its half first and reads on; then the
// server ends its half first and the container writes on.
func halfCloseRole(args []string) error {
	if got, err := upload(args[0], lateSize); err != nil || got != sumOf(lateSize) {
		return fmt.Errorf("our half closed first: the sink got %s (%w)", got, err)
	}
	c, err := net.Dial("tcp", net.JoinHostPort(args[0], portSource))
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	h := sha256.New()
	n, err := io.Copy(h, c)
	if err != nil || digest(h, n) != sumOf(sourceSize) {
		return fmt.Errorf("the server's half closed first: got %s (%w)", digest(h, n), err)
	}
	// Its FIN is in; the other direction must still take data.
	_, err = io.CopyN(c, stream(), lateSize)
	return err
}

// dialRole: NETWORK ADDRESS... — prints for each the name of the error and the
// milliseconds it took.
func dialRole(args []string) error {
	for _, addr := range args[1:] {
		start := time.Now()
		c, err := net.DialTimeout(args[0], addr, 10*time.Second)
		if err == nil {
			c.Close()
		}
		fmt.Printf("%s %s %d\n", addr, errorName(err), time.Since(start).Milliseconds())
	}
	return nil
}

// errorName is a short name for the outcome of a dial.
func errorName(err error) string {
	var errno syscall.Errno
	var timeout net.Error
	switch {
	case err == nil:
		return "connected"
	case errors.As(err, &errno):
		return unix.ErrnoName(errno)
	case errors.As(err, &timeout) && timeout.Timeout():
		return "timeout"
	}
	return strings.ReplaceAll(err.Error(), " ", "_")
}

// goodRole: ADDRESS COUNT — connects again and again, and prints the longest and
// the middle time. The first failure ends it.
func goodRole(args []string) error {
	count, _ := strconv.Atoi(args[1])
	var worst, total time.Duration
	for i := range count {
		start := time.Now()
		if err := oneEcho(args[0], fmt.Sprint("good ", i)); err != nil {
			return fmt.Errorf("connect %d: %w", i, err)
		}
		took := time.Since(start)
		worst, total = max(worst, took), total+took
		time.Sleep(10 * time.Millisecond)
	}
	fmt.Printf("%d connects, mean %v, worst %v", count, (total / time.Duration(count)).Round(time.Microsecond), worst.Round(time.Microsecond))
	return nil
}

// lookupRole: SERVER TYPE NAME COUNT — asks a name server so many times, and prints
// the last answer's text. The first failure ends it.
func lookupRole(args []string) error {
	count, _ := strconv.Atoi(args[3])
	var worst time.Duration
	var text []string
	for i := range count {
		start := time.Now()
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		var err error
		text, err = lookup(ctx, args[0], args[1], args[2])
		cancel()
		if err != nil {
			return fmt.Errorf("query %d after %v: %w", i, time.Since(start), err)
		}
		worst = max(worst, time.Since(start))
	}
	fmt.Println(strings.Join(text, " "))
	if count > 1 {
		fmt.Printf("%d queries, worst %v", count, worst.Round(time.Microsecond))
	}
	return nil
}

// stubbornRole: ADDRESS — exchanges bytes with the echo server until that fails; prints
// "ready" when it has worked once, and why it failed.
func stubbornRole(args []string) error {
	c, err := net.Dial("tcp", net.JoinHostPort(args[0], portEcho))
	if err != nil {
		return err
	}
	defer c.Close()
	b := make([]byte, 64)
	for n := 0; ; n++ {
		_, err := c.Write(b)
		if err == nil {
			_, err = io.ReadFull(c, b)
		}
		if err != nil {
			fmt.Println(err)
			return nil
		}
		if n == 0 {
			fmt.Println("ready")
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// interfaceRole: NAME — prints an interface's identity, its fixed addresses and the
// IPv4 routes.
func interfaceRole(args []string) error {
	ifi, err := net.InterfaceByName(args[0])
	if err != nil {
		return err
	}
	addrs, err := ifi.Addrs()
	if err != nil {
		return err
	}
	fmt.Println(ifi.Index, ifi.Name, ifi.HardwareAddr, ifi.MTU)
	for _, a := range addrs { // what the kernel makes of advertisements comes and goes
		if s := a.String(); strings.HasPrefix(s, "10.") || strings.HasPrefix(s, "fd00::100/") {
			fmt.Println(s)
		}
	}
	routes, err := os.ReadFile("/proc/self/net/route")
	fmt.Print(string(routes))
	return err
}
