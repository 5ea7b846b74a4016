package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
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

// cniConfig is nerdctl's network "bridge".
const cniConfig = `[
{"type": "bridge", "bridge": "nerdctl0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
 "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.4.0.0/24", "gateway": "10.4.0.1"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
{"type": "portmap", "capabilities": {"portMappings": true}},
{"type": "firewall"},
{"type": "tuning"}]`

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
	Dir   string
	Ports []portMapping
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
	c := http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", h.State+"/api.sock")
	}}}
	text, err := json.Marshal(body)
	if err != nil {
		return err
	}
	q, err := http.NewRequest(method, "http://rootlesskit/v1/"+path, bytes.NewReader(text))
	if err != nil {
		return err
	}
	q.Header.Set("Content-Type", "application/json")
	r, err := c.Do(q)
	if err != nil {
		return err
	}
	defer r.Body.Close()
	text, err = io.ReadAll(r.Body)
	if err != nil || r.StatusCode/100 != 2 {
		return fmt.Errorf("%s %s: %s: %s, %w", method, path, r.Status, text, err)
	}
	if answer == nil {
		return nil
	}
	return json.Unmarshal(text, answer)
}

// childAddress is where RootlessKit's side forwards a port to: nerdctl and Docker follow
// what it says of loopback addresses.
func (h cniHook) childAddress() (string, error) {
	var info struct {
		NetworkDriver struct{ ChildIP string }
		PortDriver    struct {
			Protos                  []string
			DisallowLoopbackChildIP bool
		}
	}
	if err := h.api("GET", "info", nil, &info); err != nil {
		return "", err
	}
	for _, p := range h.Ports {
		if !slices.Contains(info.PortDriver.Protos, p.Protocol+"4") {
			return "", fmt.Errorf("protocol %q is not supported by the RootlessKit port driver", p.Protocol+"4")
		}
	}
	if info.PortDriver.DisallowLoopbackChildIP {
		return info.NetworkDriver.ChildIP, nil
	}
	return "127.0.0.1", nil
}

// add makes the container's network and publishes its ports.
func (h cniHook) add(id string, pid int) error {
	child, err := h.childAddress()
	if err != nil {
		return err
	}
	netns := fmt.Sprintf("/proc/%d/ns/net", pid)
	if _, err := runCNI("ADD", "loopback", id, netns, "lo", map[string]any{}, nil); err != nil {
		return err
	}
	// The host's addresses are not the child's.
	inner := slices.Clone(h.Ports)
	for n := range inner {
		if inner[n].HostIP != "0.0.0.0" {
			inner[n].HostIP = child
		}
	}
	var plugins []map[string]any
	if err := json.Unmarshal([]byte(cniConfig), &plugins); err != nil {
		return err
	}
	var done cniDone
	var result json.RawMessage
	for _, p := range plugins {
		p["runtimeConfig"] = map[string]any{"portMappings": inner}
		if result, err = runCNI("ADD", p["type"].(string), id, netns, "eth0", p, result); err != nil {
			return err
		}
		done.Results = append(done.Results, result)
	}
	for _, p := range h.Ports {
		var status struct{ ID int }
		spec := map[string]any{"proto": p.Protocol + "4", "parentIP": p.HostIP, "parentPort": p.HostPort, "childIP": child, "childPort": p.HostPort}
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
	err = errors.Join(err, json.Unmarshal([]byte(cniConfig), &plugins))
	for n, p := range slices.Backward(plugins) {
		p["runtimeConfig"] = map[string]any{"portMappings": h.Ports}
		// The network is gone with the container.
		_, e := runCNI("DEL", p["type"].(string), id, "", "eth0", p, done.Results[n])
		err = errors.Join(err, e)
	}
	return errors.Join(err, os.Remove(filepath.Join(h.Dir, id)))
}

// runCNI runs one plugin.
func runCNI(verb, plugin, id, netns, ifname string, config map[string]any, previous json.RawMessage) (json.RawMessage, error) {
	config["cniVersion"], config["name"], config["type"] = "0.4.0", "bridge", plugin
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
