package join

import (
	"errors"
	"net"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/userns/internal/usertest"
	"github.com/postern-net/postern/userns/rtnl"
	"github.com/postern-net/postern/userns/spawn"
)

// TestDescribeTAP: what a TAP's descriptor tells and changes without its namespace.
func TestDescribeTAP(t *testing.T) {
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		usertest.Missing(t, "%v", err)
	}
	defer f.Close()
	if _, err := DescribeTAP(f); !errors.Is(err, unix.EBADFD) {
		t.Errorf("one that is not attached: %v, want EBADFD", err)
	}
	target := mustOpen(t, inhabited(t, spawn.Single, nil).PID)
	s := mustVisit(t, target, Request{TAP: "tap0"})
	link, err := rtnl.Find(s.Route, "tap0")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := DescribeTAP(s.TAP); err != nil || got != (TAP{Name: "tap0", VNetHeader: true, MAC: [6]byte(link.MAC)}) {
		t.Errorf("%+v, %v; its MAC is %s", got, err, link.MAC)
	}
	mac := [6]byte{2, 0, 0, 1, 2, 3}
	if err := SetTAPAddress(s.TAP, mac); err != nil {
		t.Error(err)
	}
	if err := SetTAPAddress(s.TAP, [6]byte{1}); !errors.Is(err, unix.EADDRNOTAVAIL) {
		t.Errorf("a multicast address: %v, want EADDRNOTAVAIL", err)
	}
	if link, err = rtnl.Find(s.Route, "tap0"); err != nil || link.MAC.String() != net.HardwareAddr(mac[:]).String() {
		t.Errorf("MAC %s, %v", link.MAC, err)
	}
}

// TestPersistentTAP: one that outlives its descriptor is attached to, keeps what it is,
// and is given back without offloads.
func TestPersistentTAP(t *testing.T) {
	if f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0); err != nil {
		usertest.Missing(t, "%v", err)
	} else {
		f.Close()
	}
	target := mustOpen(t, inhabited(t, spawn.Single, nil).PID)
	s := mustVisit(t, target, Request{TAP: "tap0"})
	if err := ioctlValue(s.TAP, unix.TUNSETPERSIST, 1); err != nil {
		t.Fatal(err)
	}
	before, err := DescribeTAP(s.TAP)
	if err != nil || !before.Persistent {
		t.Fatalf("%+v, %v", before, err)
	}
	if err := ioctlValue(s.TAP, unix.TUNSETOFFLOAD, unix.TUN_F_CSUM|unix.TUN_F_TSO4); err != nil {
		t.Fatal(err)
	}
	if err := ReleaseTAP(s.TAP); err != nil {
		t.Error(err)
	}
	if size, err := unix.IoctlGetInt(int(s.TAP.Fd()), unix.TUNGETVNETHDRSZ); err != nil || size != vnetHeaderDefault {
		t.Errorf("given back with a header of %d bytes, %v", size, err)
	}
	s.Close()
	s = mustVisit(t, target, Request{TAP: "tap0"})
	if got, err := DescribeTAP(s.TAP); err != nil || got != before {
		t.Errorf("attached again: %+v, %v; want %+v", got, err, before)
	}
	if size, err := unix.IoctlGetInt(int(s.TAP.Fd()), unix.TUNGETVNETHDRSZ); err != nil || size != vnetHeaderSize {
		t.Errorf("attached again with a header of %d bytes, %v", size, err)
	}
}

func TestDescribeOtherFiles(t *testing.T) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	for _, f := range []*os.File{null, r} {
		if _, err := DescribeTAP(f); !errors.Is(err, ErrNoTAP) {
			t.Errorf("%s: %v, want ErrNoTAP", f.Name(), err)
		}
	}
}

// TestInterfaceAddress: an interface gets its hardware address with its configuration.
func TestInterfaceAddress(t *testing.T) {
	target := mustOpen(t, inhabited(t, spawn.Single, nil).PID)
	s := mustVisit(t, target, Request{Packet: true})
	if err := rtnl.AddVeth(s.Route, "tap0", "far0", s.FarNetNS); err != nil {
		t.Fatal(err)
	}
	want := testInterface
	want.MAC = [6]byte{2, 0, 0, 4, 5, 6}
	link, err := rtnl.Configure(s.Route, want)
	if err != nil || link.MAC.String() != net.HardwareAddr(want.MAC[:]).String() {
		t.Errorf("MAC %s, %v", link.MAC, err)
	}
}
