package instance

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestMakeNetNS(t *testing.T) {
	root := private(t)
	d, _, err := CreateNamed(root, "one")
	if err != nil {
		t.Fatal(err)
	}
	path, err := d.MakeNetNS()
	if err != nil || path != filepath.Join(root, "one", "netns") {
		t.Fatalf("MakeNetNS = %q, %v", path, err)
	}
	info := Info{Name: "one", PID: os.Getpid(), NetNS: path}
	if err := info.SetChild(os.Getpid()); err != nil {
		t.Fatal(err)
	}
	f, err := info.OpenNetNS()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var st, want unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	if err := unix.Stat(path, &want); err != nil || st.Ino != want.Ino || st.Dev != want.Dev {
		t.Errorf("OpenNetNS opened another file than %s (%v)", path, err)
	}
	info.NetNS += "2"
	if f, err := info.OpenNetNS(); err == nil {
		f.Close()
		t.Error("OpenNetNS opened what is not there")
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	if exists(filepath.Join(root, "one")) {
		t.Error("the directory is left")
	}
}

// TestOfProcess: a process is found by what its directory says, not by what the
// process says.
func TestOfProcess(t *testing.T) {
	d, _, err := CreateNamed(private(t), "one")
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	run := func(env ...string) int {
		cmd := exec.Command("sleep", "1000")
		cmd.Env = env
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		})
		return cmd.Process.Pid
	}
	child := run(StateVariable+"="+d.Path(""), "A=1")
	impostor := run(StateVariable + "=" + d.Path(""))
	stranger := run("A=1", StateVariable+"="+d.Path(""))
	if _, found := OfProcess(child); found {
		t.Error("found before anything was published")
	}
	info := Info{Name: "one", PID: os.Getpid(), NetNS: d.Path("netns")}
	if err := info.SetChild(child); err != nil {
		t.Fatal(err)
	}
	if err := d.Publish(info); err != nil {
		t.Fatal(err)
	}
	if got, found := OfProcess(child); !found || got.NetNS != info.NetNS {
		t.Errorf("OfProcess(child) = %+v, %v", got, found)
	}
	for _, pid := range []int{impostor, stranger, 1 << 30} {
		if got, found := OfProcess(pid); found {
			t.Errorf("OfProcess(%d) = %+v", pid, got)
		}
	}
	info.ChildStart++ // the number was used again
	if err := d.Publish(info); err != nil {
		t.Fatal(err)
	}
	if _, found := OfProcess(child); found {
		t.Error("a process with the number of one that ended was taken for it")
	}
}
