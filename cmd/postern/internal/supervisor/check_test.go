package supervisor

import (
	"strings"
	"testing"

	"github.com/postern-net/postern/portdriver"
)

func TestCheck(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*RunConfig)
		want   string // in the error, "" for none
	}{
		{"defaults", func(*RunConfig) {}, ""},
		{"host", func(c *RunConfig) { c.Net = NetHost }, ""},
		{"none, detached", func(c *RunConfig) { c.Net, c.DetachNetNS = NetNone, true }, ""},
		{"publish", func(c *RunConfig) { c.Publish = make([]portdriver.Spec, 1) }, ""},
		{"publish without an engine", func(c *RunConfig) { c.Net, c.Publish = NetNone, make([]portdriver.Spec, 1) }, "--net=none"},
		{"publish from inside", func(c *RunConfig) {
			c.Net, c.Publish, c.PortDriver = NetNone, make([]portdriver.Spec, 1), PortDriverSplice
		}, ""},
		{"follow listeners without a network", func(c *RunConfig) { c.Net, c.PublishAuto, c.PortDriver = NetNone, true, PortDriverSplice }, "--net=none"},
		{"publish on the host", func(c *RunConfig) { c.Net, c.Publish = NetHost, make([]portdriver.Spec, 1) }, "--net=host"},
		{"follow listeners on the host", func(c *RunConfig) { c.Net, c.PublishAuto = NetHost, true }, "--net=host"},
		{"slirp4netns's socket without an engine", func(c *RunConfig) { c.Net, c.Slirp4netnsSocket = NetNone, "/s" }, "--net=none"},
		{"another network", func(c *RunConfig) { c.Net = "wifi" }, `"wifi"`},
		{"no propagation", func(c *RunConfig) { c.Propagation = "" }, "--propagation"},
		{"reaper", func(c *RunConfig) { c.Reaper, c.PIDNS = true, true }, ""},
		{"reaper without its namespace", func(c *RunConfig) { c.Reaper = true }, "--pidns"},
		{"evacuation", func(c *RunConfig) { c.EvacuateCgroup2, c.PIDNS, c.CgroupNS = "evac", true, true }, ""},
		{"evacuation without a PID namespace", func(c *RunConfig) { c.EvacuateCgroup2, c.CgroupNS = "evac", true }, "--pidns"},
		{"evacuation without a cgroup namespace", func(c *RunConfig) { c.EvacuateCgroup2, c.PIDNS = "evac", true }, "--cgroupns"},
		{"evacuation upwards", func(c *RunConfig) { c.EvacuateCgroup2, c.PIDNS, c.CgroupNS = "..", true, true }, "--evacuate-cgroup2"},
		{"evacuation to a path", func(c *RunConfig) { c.EvacuateCgroup2, c.PIDNS, c.CgroupNS = "a/b", true, true }, "--evacuate-cgroup2"},
		{"static", func(c *RunConfig) { c.Subids = SubidStatic }, ""},
		{"another source", func(c *RunConfig) { c.Subids = "sss" }, `"sss"`},
	} {
		c := RunConfig{Propagation: "rprivate"}
		tc.change(&c)
		err := c.Check()
		switch {
		case (err == nil) != (tc.want == ""):
			t.Errorf("%s: error %v, want %q", tc.name, err, tc.want)
		case err != nil && (!strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "\n")):
			t.Errorf("%s: error %q lacks %q, or has more than one line", tc.name, err, tc.want)
		}
	}
}

// TestReaps: orphans stay zombies only where RootlessKit's would.
func TestReaps(t *testing.T) {
	for c, want := range map[reaping]bool{
		{pidns: true, reaper: true}: true, {pidns: true}: false, {}: true,
	} {
		if got := (&RunConfig{PIDNS: c.pidns, Reaper: c.reaper}).reaps(); got != want {
			t.Errorf("%+v: %v, want %v", c, got, want)
		}
	}
}

// reaping is what TestReaps varies.
type reaping struct{ pidns, reaper bool }
