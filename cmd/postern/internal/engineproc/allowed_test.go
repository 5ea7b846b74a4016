package engineproc

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// engineRole does what an engine does: "TCP,UDP,PATH,ABSTRACT", where servers wait
// that send back what they get.
func engineRole(arg string) error {
	at := strings.Split(arg, ",")
	for i, network := range []string{"tcp", "udp"} {
		if err := talk(network, at[i]); err != nil {
			return fmt.Errorf("%s: %w", network, err)
		}
	}
	if _, err := net.InterfaceByName("lo"); err != nil {
		return err
	}
	if err := spliced(); err != nil {
		return fmt.Errorf("splice: %w", err)
	}
	interrupted()
	for _, path := range at[2:] {
		_, err := net.Dial("unix", path)
		fmt.Println("unix:", errors.Is(err, unix.EACCES))
	}
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC}
	_, err := unix.Openat2(unix.AT_FDCWD, at[2], &how)
	fmt.Println("look up:", errors.Is(err, unix.EACCES))
	fmt.Println("works")
	return nil
}

// talk wants its own words back.
func talk(network, at string) error {
	c, err := net.Dial(network, at)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.Write([]byte("hello")); err != nil {
		return err
	}
	var b [5]byte
	if _, err := io.ReadFull(c, b[:]); err != nil || string(b[:]) != "hello" {
		return fmt.Errorf("got %q, %w", b, err)
	}
	return nil
}

func spliced() error {
	var a, b [2]int
	if err := errors.Join(unix.Pipe2(a[:], unix.O_CLOEXEC), unix.Pipe2(b[:], unix.O_CLOEXEC)); err != nil {
		return err
	}
	// EPERM: the user has many pipes (pipe(7), pipe-user-pages-soft).
	if _, err := unix.FcntlInt(uintptr(a[1]), unix.F_SETPIPE_SZ, 1<<16); err != nil && !errors.Is(err, unix.EPERM) {
		return err
	}
	if _, err := unix.Write(a[1], []byte("x")); err != nil {
		return err
	}
	_, err := unix.Splice(a[0], nil, b[1], nil, 1, 0)
	return err
}

// interrupted starts threads that do not yield, which the collector can only stop with
// signals between threads.
func interrupted() {
	var on atomic.Bool
	on.Store(true)
	for range 2 {
		go func() {
			runtime.LockOSThread()
			for n := uint64(1); n != 0; n += 2 {
			}
			on.Store(false) // not in our time
		}()
	}
	for range 5 {
		runtime.GC()
	}
	_ = on.Load()
}

// echo serves a listener.
func echo(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			_, _ = io.Copy(c, c)
		}()
	}
}

// TestWorksConfined: what the engine needs goes on, and unix sockets, by path and
// abstract, are out of its reach.
func TestWorksConfined(t *testing.T) {
	tcp, err1 := net.Listen("tcp", "127.0.0.1:0")
	udp, err2 := net.ListenPacket("udp", "127.0.0.1:0")
	path := filepath.Join(t.TempDir(), "sock")
	local, err3 := net.Listen("unix", path)
	abstract, err4 := net.Listen("unix", "@postern-test-"+filepath.Base(filepath.Dir(filepath.Dir(path)))+fmt.Sprint(os.Getpid()))
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	for _, l := range []net.Listener{tcp, local, abstract} {
		defer l.Close()
		go echo(l)
	}
	go func() {
		b := make([]byte, 64)
		for {
			n, from, err := udp.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = udp.WriteTo(b[:n], from)
		}
	}()
	arg := strings.Join([]string{tcp.Addr().String(), udp.LocalAddr().String(), path, abstract.Addr().String()}, ",")
	text, err := result(t, "engine", arg)
	if err != nil || !strings.Contains(text, "works\n") {
		t.Fatalf("%v: %s", err, text)
	}
	if strings.Count(text, "unix: true\n") != 2 || !strings.Contains(text, "look up: true\n") {
		t.Errorf("it gets at unix sockets: %s", text)
	}
	abi, err := landlockABI()
	if err != nil && !strings.Contains(text, "missing engine without Landlock") {
		t.Errorf("there is no Landlock and nothing said so: %s", text)
	}
	t.Logf("Landlock version %d, files %#x, %v", abi, fileRights(abi), err)
}

// TestLandlockRights: what each version of Landlock is asked for.
func TestLandlockRights(t *testing.T) {
	for _, c := range []struct {
		abi            int
		errata         uint64
		rights, scopes uint64
	}{
		{1, 0, 0x1fff, 0},
		{2, 0, 0x3fff, 0},
		{3, 0, 0x7fff, 0},
		{4, 0, 0x7fff, 0},
		{5, 0, 0xffff, 0},
		{6, 0, 0xffff, unix.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET},
		{6, erratumSignals, 0xffff, unix.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET | unix.LANDLOCK_SCOPE_SIGNAL},
		{8, 0, 0xffff, unix.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET | unix.LANDLOCK_SCOPE_SIGNAL},
		{99, 0, 0xffff, unix.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET | unix.LANDLOCK_SCOPE_SIGNAL},
	} {
		if r, s := fileRights(c.abi), scopes(c.abi, c.errata); r != c.rights || s != c.scopes {
			t.Errorf("version %d, errata %#x: %#x and %#x, want %#x and %#x", c.abi, c.errata, r, s, c.rights, c.scopes)
		}
	}
}
