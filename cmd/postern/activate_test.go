package main

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// activateMain is systemd for one service: activate NAME=ADDR... -- COMMAND [ARG...]
// listens on addresses or unix:PATH and becomes the command, which finds the sockets as
// sd_listen_fds(3) says.
func activateMain() {
	words := slices.Index(os.Args, "--")
	if words < 0 {
		words = len(os.Args) - 1
	}
	err := activate(os.Args[1:words], os.Args[words+1:])
	fmt.Fprintln(os.Stderr, "activate:", err)
	os.Exit(1)
}

func activate(sockets, command []string) error {
	var names []string
	for i, socket := range sockets {
		name, addr, _ := strings.Cut(socket, "=")
		network := "tcp"
		if path, ok := strings.CutPrefix(addr, "unix:"); ok {
			network, addr = "unix", path
		}
		l, err := net.Listen(network, addr)
		if err != nil {
			return err
		}
		f, err := l.(interface{ File() (*os.File, error) }).File()
		if err != nil {
			return err
		}
		// Far from the numbers to come, of which this program may have some itself.
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD, 100+i)
		if err != nil {
			return err
		}
		if err := unix.SetNonblock(fd, i == 0); err != nil { // both kinds
			return err
		}
		names = append(names, name)
	}
	for i := range sockets {
		if err := errors.Join(unix.Dup3(100+i, 3+i, 0), unix.Close(100+i)); err != nil {
			return err
		}
	}
	path, err := exec.LookPath(cmp.Or(append(command, "")[0], "true"))
	if err != nil {
		return err
	}
	env := append(os.Environ(), fmt.Sprint("LISTEN_PID=", os.Getpid()), fmt.Sprint("LISTEN_FDS=", len(sockets)), "LISTEN_FDNAMES="+strings.Join(names, ":"))
	return syscall.Exec(path, command, env)
}

// activatedMain serves HTTP on the sockets that it was started with, and says on which.
func activatedMain() {
	n, err := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	if pid := strconv.Itoa(os.Getpid()); err != nil || os.Getenv("LISTEN_PID") != pid {
		fmt.Fprintf(os.Stderr, "process %s: LISTEN_PID=%s LISTEN_FDS=%s\n", pid, os.Getenv("LISTEN_PID"), os.Getenv("LISTEN_FDS"))
		os.Exit(1)
	}
	names := strings.Split(os.Getenv("LISTEN_FDNAMES"), ":")
	ended := make(chan error)
	for i := range n {
		l, err := net.FileListener(os.NewFile(uintptr(3+i), names[i]))
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		go func() {
			ended <- http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				fmt.Fprint(w, "socket ", names[i], " ")
				serveClient(w, r)
			}))
		}()
	}
	fmt.Fprintln(os.Stderr, <-ended)
	os.Exit(1)
}
