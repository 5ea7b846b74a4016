package stacktest

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"runtime/pprof"
	"strings"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/refs"
)

// NoLeaks fails the test if goroutines or descriptors are left when it ends,
// after everything that was cleaned up before. Call it first, and not in
// parallel tests.
func NoLeaks(tb testing.TB) {
	tb.Helper()
	warmPoller()
	goroutines, files := runtime.NumGoroutine(), descriptors()
	tb.Cleanup(func() {
		if tb.Failed() {
			return // what hangs has been told already
		}
		for end := time.Now().Add(Patience); ; time.Sleep(5 * time.Millisecond) {
			if runtime.NumGoroutine() <= goroutines && len(descriptors()) <= len(files) {
				return
			}
			if time.Now().After(end) {
				break
			}
		}
		if n := runtime.NumGoroutine(); n > goroutines {
			var b bytes.Buffer
			_ = pprof.Lookup("goroutine").WriteTo(&b, 1)
			tb.Errorf("%d goroutines, %d before the test:\n%s", n, goroutines, &b)
		}
		if now := descriptors(); len(now) > len(files) {
			tb.Errorf("%d descriptors, %d before the test: %v, before: %v", len(now), len(files), now, files)
		}
	})
}

// warmPoller makes Go's poller open its own descriptors, which stay open.
func warmPoller() {
	if r, w, err := os.Pipe(); err == nil {
		r.Close()
		w.Close()
	}
}

// descriptors lists what the process has open.
func descriptors() []string {
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return nil
	}
	var open []string
	for _, e := range list {
		// The directory's own descriptor is closed again and has no target.
		if target, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil {
			open = append(open, target)
		}
	}
	return open
}

// RunChecked runs tests, such as testing.M's Run, with netstack's reference
// counts watched, and returns the exit code: not 0 either when a packet was left
// behind.
func RunChecked(run func() int) int {
	refs.SetLeakMode(refs.LeaksPanic)
	code := run()
	if code != 0 {
		return code
	}
	if leak := awaitReferences(); leak != "" {
		fmt.Fprintln(os.Stderr, leak)
		return 1
	}
	return 0
}

// CheckReferences fails the test if netstack's objects are alive that nobody
// uses. RunChecked must be under way.
func CheckReferences(tb testing.TB) {
	tb.Helper()
	if leak := awaitReferences(); leak != "" {
		tb.Error(leak)
	}
}

// awaitReferences gives timers and workers a moment to let go, and returns what
// is left.
func awaitReferences() (leak string) {
	for end := time.Now().Add(Patience); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if leak = references(); leak == "" {
			return ""
		}
	}
	return leak
}

// references turns the panic of gVisor's checker into its message.
func references() (leak string) {
	defer func() {
		if r := recover(); r != nil {
			leak = fmt.Sprint(r)
			if i := strings.IndexByte(leak, '\n'); i > 0 {
				leak = leak[:min(len(leak), i+2000)]
			}
		}
	}()
	refs.DoRepeatedLeakCheck()
	return ""
}
