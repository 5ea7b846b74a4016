package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// shell is an interactive shell on a terminal of its own, as a user has one.
type shell struct {
	t      *testing.T
	master *os.File
	fd     int // master's
	cmd    *exec.Cmd

	mu   sync.Mutex // guards seen
	seen bytes.Buffer
}

// prompt is the shell's; nothing else prints it.
const prompt = "<ready>"

// newShell starts a shell with postern in its PATH and waits for its prompt.
func newShell(t *testing.T) *shell {
	t.Helper()
	bash, err := exec.LookPath("bash")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("bash is missing, and CI=true")
		}
		t.Skip("needs bash")
	}
	master, fd, slave := openPTY(t)
	bin, runtimeDir := t.TempDir(), shortDir(t)
	if err := os.Symlink("/proc/"+fmt.Sprint(os.Getpid())+"/exe", filepath.Join(bin, "postern")); err != nil {
		t.Fatal(err)
	}
	s := &shell{t: t, master: master, fd: fd, cmd: exec.Command(bash, "--norc", "--noprofile", "-i")}
	s.cmd.Stdin, s.cmd.Stdout, s.cmd.Stderr = slave, slave, slave
	s.cmd.Env = []string{"PATH=" + bin + ":" + os.Getenv("PATH"), "PS1=" + prompt, "TERM=dumb", "HOME=" + runtimeDir,
		"XDG_RUNTIME_DIR=" + runtimeDir, "USER=" + os.Getenv("USER"), "SHELL=/bin/sh", "HISTFILE=",
		"GORACE=atexit_sleep_ms=0"}
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = slave.Close()
	read := make(chan struct{})
	go func() {
		defer close(read)
		s.collect()
	}()
	t.Cleanup(func() {
		_ = s.cmd.Process.Kill()
		_ = s.cmd.Wait()
		_ = master.Close()
		<-read
	})
	s.expect(prompt)
	return s
}

// shortDir is a runtime directory with room for a socket's path.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "pn")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// openPTY makes a pseudo-terminal (pty(7)). The master is non-blocking, so that
// closing it ends a read.
func openPTY(t *testing.T) (master *os.File, fd int, slave *os.File) {
	t.Helper()
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fd), "/dev/ptmx"), fd, slave
}

// collect keeps what the terminal shows; it ends when the terminal is closed.
func (s *shell) collect() {
	buf := make([]byte, 4096)
	for {
		n, err := s.master.Read(buf)
		s.mu.Lock()
		s.seen.Write(buf[:n])
		s.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// expect waits until the terminal has shown each text, in this order, and forgets
// everything up to there.
func (s *shell) expect(texts ...string) {
	s.t.Helper()
	for _, text := range texts {
		err := eventually(patience, func() error {
			s.mu.Lock()
			defer s.mu.Unlock()
			i := bytes.Index(s.seen.Bytes(), []byte(text))
			if i < 0 {
				return fmt.Errorf("the terminal does not show %q but %.300q", text, s.seen.String())
			}
			s.seen.Next(i + len(text))
			return nil
		})
		if err != nil {
			s.t.Fatal(err)
		}
	}
}

// typ types.
func (s *shell) typ(keys string) {
	s.t.Helper()
	if _, err := s.master.WriteString(keys); err != nil {
		s.t.Fatal(err)
	}
}

// runs waits until a process of this command line is the terminal's foreground
// group: keys typed earlier would be the shell's.
func (s *shell) runs(command string) {
	s.t.Helper()
	err := eventually(patience, func() error {
		group, err := unix.IoctlGetInt(s.fd, unix.TIOCGPGRP)
		for _, p := range processes() {
			if p.command == command && p.pid == group {
				return nil
			}
		}
		return fmt.Errorf("foreground group %d (%v) is not %q", group, err, command)
	})
	if err != nil {
		s.t.Fatal(err)
	}
}

// Control characters.
const (
	ctrlC = "\x03"
	ctrlD = "\x04"
	ctrlZ = "\x1a"
)

// alive asks the shell a question that only a usable terminal answers.
func (s *shell) alive() {
	s.t.Helper()
	s.typ("echo $((6*7))_\n")
	s.expect("42_", prompt)
}

func TestTerminalInterrupt(t *testing.T) {
	if !asUser(t) {
		return
	}
	s := newShell(t)
	s.typ("postern run -- sh -c 'echo on_; exec sleep 1000'; echo code_$?\n")
	s.expect("on_\r\n")
	s.typ(ctrlC)
	s.expect("code_130", prompt)
	s.alive()
}

// TestTerminalInterruptEndsScript: without postern a script's loop ends on Ctrl-C;
// with it too.
func TestTerminalInterruptEndsScript(t *testing.T) {
	if !asUser(t) {
		return
	}
	s := newShell(t)
	s.typ("sh -c 'while :; do postern run -- sh -c \"echo on_; exec sleep 1000\"; done'; echo left_\n")
	s.expect("on_\r\n")
	s.typ(ctrlC)
	s.expect(prompt)
	s.alive()
}

func TestTerminalStopAndContinue(t *testing.T) {
	if !asUser(t) {
		return
	}
	s := newShell(t)
	s.typ("postern run -- sh -c 'echo on_; while read line; do echo got_$line; done; echo eof_'\n")
	s.expect("on_\r\n")
	for n := range 3 {
		s.typ(ctrlZ)
		s.expect("Stopped", prompt)
		s.alive()
		s.typ("fg\n")
		s.expect("postern run")
		s.typ(fmt.Sprintf("line%d\n", n))
		s.expect(fmt.Sprintf("got_line%d", n))
	}
	s.typ(ctrlD)
	s.expect("eof_", prompt)
	s.alive()
}

// TestTerminalBackground: a job started in the background works there, stops when
// it wants the terminal, and gets it with fg.
func TestTerminalBackground(t *testing.T) {
	if !asUser(t) {
		return
	}
	s := newShell(t)
	s.typ("postern run -- sh -c 'echo working_; read line; echo got_$line' &\n")
	s.expect("working_\r\n")
	if err := eventually(patience, func() error {
		s.typ("\n") // the shell tells of its jobs when it prompts
		time.Sleep(100 * time.Millisecond)
		s.mu.Lock()
		defer s.mu.Unlock()
		if !strings.Contains(s.seen.String(), "Stopped") {
			return fmt.Errorf("not stopped: %.300q", s.seen.String())
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	s.alive()
	s.typ("fg\n")
	s.expect("postern run")
	s.typ("word\n")
	s.expect("got_word", prompt)
	s.alive()
}

// TestTerminalBackgroundToForeground: fg of a job that was never stopped sends it
// no signal; it gets the terminal when it reads.
func TestTerminalBackgroundToForeground(t *testing.T) {
	if !asUser(t) {
		return
	}
	s := newShell(t)
	s.typ("postern run -- sh -c 'echo on_; until [ -e $HOME/go ]; do sleep 0.05; done; read line; echo got_$line' &\n")
	s.expect("on_\r\n")
	s.typ("fg\n")
	s.expect("postern run")
	home := s.cmd.Env[3][len("HOME="):]
	if err := os.WriteFile(filepath.Join(home, "go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s.typ("word\n")
	s.expect("got_word", prompt)
	s.alive()
}

func TestTerminalResize(t *testing.T) {
	if !asUser(t) {
		return
	}
	s := newShell(t)
	s.typ("postern run -- sh -c 'trap \"stty size\" WINCH; echo on_; while :; do sleep 0.05; done'\n")
	s.expect("on_\r\n")
	time.Sleep(50 * time.Millisecond) // the trap was set before; this only makes the change a second event
	if err := unix.IoctlSetWinsize(s.fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 33, Col: 99}); err != nil {
		t.Fatal(err)
	}
	s.expect("33 99")
	s.typ(ctrlC)
	s.expect(prompt)
	s.alive()
}

// TestTerminalInteractiveShell runs a shell with job control inside.
func TestTerminalInteractiveShell(t *testing.T) {
	if !asUser(t) {
		return
	}
	s := newShell(t)
	s.typ("postern run -- env PS1='<in''ner>' bash --norc --noprofile -i\n")
	s.expect("<inner>")
	s.typ("sleep 1011\n")
	s.runs("sleep 1011 ")
	s.typ(ctrlZ)
	s.expect("Stopped", "<inner>")
	s.typ("kill %1; wait %1; sleep 1012\n") // a shell does not exit with a stopped job
	s.runs("sleep 1012 ")
	s.typ(ctrlC)
	s.expect("<inner>")
	s.typ("exit 3\n")
	s.expect(prompt)
	s.typ("echo code_$?\n")
	s.expect("code_3", prompt)
	s.alive()
}

// TestTerminalPipeline: in a pipeline the terminal stays with the pipeline's
// group, where the pager is, and Ctrl-C ends the command all the same.
func TestTerminalPipeline(t *testing.T) {
	if !asUser(t) {
		return
	}
	s := newShell(t)
	s.typ("postern run -- sh -c 'echo data_; exec sleep 1000' | sh -c 'read x; echo seen_$x; read y </dev/tty; echo key_$y; cat; echo over_'\n")
	s.expect("seen_data_")
	s.typ("press\n")
	s.expect("key_press")
	s.typ(ctrlC)
	s.expect(prompt)
	s.alive()
}

// TestTerminalKilled: whatever ends, the shell has its terminal back.
func TestTerminalKilled(t *testing.T) {
	if !asUser(t) {
		return
	}
	s := newShell(t)
	for _, how := range []string{"TERM", "KILL", "HUP"} {
		s.typ("postern run -- sh -c 'echo on_; kill -" + how + " $$'; echo code_$?\n")
		s.expect("on_\r\n", "code_", prompt)
		s.alive()
	}
}

// TestTerminalHangup: when the terminal goes away, so does everything.
func TestTerminalHangup(t *testing.T) {
	if !asUser(t) {
		return
	}
	s := newShell(t)
	mark := filepath.Base(s.cmd.Env[3])
	s.typ("postern run -- sh -c 'echo on_; sleep 1000; : " + mark + "'\n")
	s.expect("on_\r\n")
	_ = s.cmd.Process.Kill() // the session's leader: its terminal hangs up
	if err := eventually(goneWithin, func() error {
		for _, p := range processes() {
			if strings.Contains(p.command, mark) {
				return fmt.Errorf("process %d is left: %s", p.pid, p.command)
			}
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}
