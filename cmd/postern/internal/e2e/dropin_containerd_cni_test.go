package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// What nerdctl does for a container with published ports, with no nerdctl there: OCI
// hooks that run CNI's plugins and tell RootlessKit of the ports.

// cniPlugins is where Debian has them.
const cniPlugins = "/usr/lib/cni"

// cniNetworks are nerdctl's networks: the one that is there from the start, and one that
// "nerdctl network create --ipv6 --subnet 10.4.1.0/24 --subnet fd00:104:1::/64 dual" makes.
var cniNetworks = map[string]string{
	"bridge": cniNetwork("nerdctl0", "10.4.0.0/24"),
	"dual":   cniNetwork("br-dual", "10.4.1.0/24", "fd00:104:1::/64"),
}

// cniNetwork is the plugins of a network with a bridge.
func cniNetwork(bridge string, subnets ...string) string {
	var ranges, routes []string
	for _, subnet := range subnets {
		everywhere := "0.0.0.0/0"
		if strings.Contains(subnet, ":") {
			everywhere = "::/0"
		}
		ranges = append(ranges, fmt.Sprintf(`[{"subnet": %q}]`, subnet))
		routes = append(routes, fmt.Sprintf(`{"dst": %q}`, everywhere))
	}
	return fmt.Sprintf(`[
{"type": "bridge", "bridge": %q, "isGateway": true, "ipMasq": true, "hairpinMode": true,
 "ipam": {"type": "host-local", "ranges": [%s], "routes": [%s]}},
{"type": "portmap", "capabilities": {"portMappings": true}},
{"type": "firewall"},
{"type": "tuning"}]`, bridge, strings.Join(ranges, ", "), strings.Join(routes, ", "))
}

// portMapping is a published port in CNI's words.
type portMapping struct {
	HostIP        string `json:"hostIP"`
	HostPort      int    `json:"hostPort"`
	ContainerPort int    `json:"containerPort"`
	Protocol      string `json:"protocol"`
}

// cniHook is what the hooks are told, as their first argument.
type cniHook struct {
	// State is RootlessKit's directory, NetNS its detached network or "".
	State, NetNS string
	// Dir keeps what ADD did, for DEL.
	Dir string
	// Network is one of cniNetworks.
	Network string
	Ports   []portMapping
}

// cniDone is what ADD did.
type cniDone struct {
	Results []json.RawMessage
	IDs     []int
}

// hooks are the hooks of a container's configuration.
func (h cniHook) hooks() ([]byte, error) {
	text, err := json.Marshal(h)
	if err != nil {
		return nil, err
	}
	one := func(verb string) []map[string]any {
		return []map[string]any{{"path": probe(), "args": []string{"probe", "@cni", verb, string(text)},
			"env": []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}}}
	}
	return json.Marshal(map[string]any{"createRuntime": one("ADD"), "poststop": one("DEL")})
}

// runcRole: HOOKS RUNC ARG... — runc with hooks from a file for every container that it
// creates, since ctr has no option for them, and without limits on resources, for which
// nobody has delegated a cgroup; nerdctl sets none then.
func runcRole(args []string) error {
	at := slices.Index(args, "--bundle")
	if slices.Contains(args, "create") && at > 0 {
		hooks, err := os.ReadFile(args[0])
		if err != nil {
			return err
		}
		file := args[at+1] + "/config.json"
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		config := map[string]any{}
		if err := json.Unmarshal(text, &config); err != nil {
			return err
		}
		config["hooks"] = json.RawMessage(hooks)
		delete(config["linux"].(map[string]any), "resources")
		if text, err = json.Marshal(config); err == nil {
			err = os.WriteFile(file, text, 0o600)
		}
		if err != nil {
			return err
		}
	}
	return syscall.Exec(args[1], args[1:], os.Environ())
}

// cniRole: ADD|DEL HOOK — a hook. The container's state comes by stdin.
func cniRole(args []string) error {
	var h cniHook
	var state struct {
		ID  string `json:"id"`
		PID int    `json:"pid"`
	}
	err := json.Unmarshal([]byte(args[1]), &h)
	if err = errors.Join(err, json.NewDecoder(os.Stdin).Decode(&state)); err != nil {
		return err
	}
	if h.NetNS != "" {
		runtime.LockOSThread() // never unlocked: what is started comes from this thread
		fd, err := unix.Open(h.NetNS, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			err = unix.Setns(fd, unix.CLONE_NEWNET)
		}
		if err != nil {
			return fmt.Errorf("enter %s: %w", h.NetNS, err)
		}
	}
	if args[0] == "ADD" {
		return h.add(state.ID, state.PID)
	}
	return h.del(state.ID)
}

// api asks RootlessKit's API.
func (h cniHook) api(method, path string, body, answer any) error {
	status, text, err := controlAt(h.State+"/api.sock").call(method, "/v1/"+path, body)
	if err != nil || status/100 != 2 {
		return fmt.Errorf("%s %s: status %d: %s, %w", method, path, status, text, err)
	}
	if answer == nil {
		return nil
	}
	return json.Unmarshal(text, answer)
}

// family is the suffix of a protocol, 4 or 6.
func (p portMapping) family() string {
	if strings.Contains(p.HostIP, ":") {
		return "6"
	}
	return "4"
}

// childAddresses are where RootlessKit's side forwards ports to, by family: nerdctl and
// Docker follow what it says of loopback addresses.
func (h cniHook) childAddresses() (map[string]string, error) {
	var info struct {
		NetworkDriver struct{ ChildIP string }
		PortDriver    struct {
			Protos                  []string
			DisallowLoopbackChildIP bool
		}
	}
	if err := h.api("GET", "info", nil, &info); err != nil {
		return nil, err
	}
	for _, p := range h.Ports {
		if proto := p.Protocol + p.family(); !slices.Contains(info.PortDriver.Protos, proto) {
			return nil, fmt.Errorf("protocol %q is not supported by the RootlessKit port driver", proto)
		}
	}
	if info.PortDriver.DisallowLoopbackChildIP {
		return map[string]string{"4": info.NetworkDriver.ChildIP}, nil
	}
	return map[string]string{"4": "127.0.0.1", "6": "::1"}, nil
}

// add makes the container's network and publishes its ports.
func (h cniHook) add(id string, pid int) error {
	child, err := h.childAddresses()
	if err != nil {
		return err
	}
	netns := fmt.Sprintf("/proc/%d/ns/net", pid)
	if _, err := h.runCNI("ADD", "loopback", id, netns, "lo", map[string]any{}, nil); err != nil {
		return err
	}
	// The host's addresses are not the child's.
	inner := slices.Clone(h.Ports)
	for n := range inner {
		if inner[n].HostIP != "0.0.0.0" && inner[n].HostIP != "::" {
			inner[n].HostIP = child[inner[n].family()]
		}
	}
	var plugins []map[string]any
	if err := json.Unmarshal([]byte(cniNetworks[h.Network]), &plugins); err != nil {
		return err
	}
	var done cniDone
	var result json.RawMessage
	for _, p := range plugins {
		p["runtimeConfig"] = map[string]any{"portMappings": inner}
		if result, err = h.runCNI("ADD", p["type"].(string), id, netns, "eth0", p, result); err != nil {
			return err
		}
		done.Results = append(done.Results, result)
	}
	for _, p := range h.Ports {
		var status struct{ ID int }
		spec := map[string]any{"proto": p.Protocol + p.family(), "parentIP": p.HostIP, "parentPort": p.HostPort, "childIP": child[p.family()], "childPort": p.HostPort}
		if err := h.api("POST", "ports", spec, &status); err != nil {
			return err
		}
		done.IDs = append(done.IDs, status.ID)
	}
	text, err := json.Marshal(done)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(h.Dir, id), text, 0o600)
}

// del undoes it.
func (h cniHook) del(id string) error {
	var done cniDone
	text, err := os.ReadFile(filepath.Join(h.Dir, id))
	if err == nil {
		err = json.Unmarshal(text, &done)
	}
	if err != nil {
		return err
	}
	for _, port := range done.IDs {
		err = errors.Join(err, h.api("DELETE", fmt.Sprintf("ports/%d", port), nil, nil))
	}
	var plugins []map[string]any
	err = errors.Join(err, json.Unmarshal([]byte(cniNetworks[h.Network]), &plugins))
	for n, p := range slices.Backward(plugins) {
		p["runtimeConfig"] = map[string]any{"portMappings": h.Ports}
		// The network is gone with the container.
		_, e := h.runCNI("DEL", p["type"].(string), id, "", "eth0", p, done.Results[n])
		err = errors.Join(err, e)
	}
	return errors.Join(err, os.Remove(filepath.Join(h.Dir, id)))
}

// runCNI runs one plugin.
func (h cniHook) runCNI(verb, plugin, id, netns, ifname string, config map[string]any, previous json.RawMessage) (json.RawMessage, error) {
	config["cniVersion"], config["name"], config["type"] = "0.4.0", h.Network, plugin
	if previous != nil {
		config["prevResult"] = previous
	}
	text, err := json.Marshal(config)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(cniPlugins + "/" + plugin)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "CNI_COMMAND=" + verb, "CNI_CONTAINERID=" + id, "CNI_NETNS=" + netns, "CNI_IFNAME=" + ifname, "CNI_PATH=" + cniPlugins}
	cmd.Stdin = bytes.NewReader(text)
	o := finish(cmd)
	if o.code != 0 {
		return nil, fmt.Errorf("%s %s: exit code %d: %s%s", plugin, verb, o.code, strings.TrimSpace(o.out), o.err)
	}
	return json.RawMessage(o.out), nil
}
