package instance

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"
)

// infoVersion is the version of instance.json.
const infoVersion = 1

// maxInfo bounds what is read of an instance.json, which another program of the
// same user may have damaged.
const maxInfo = 64 << 10

// Info is what the world may know of an instance; it is instance.json.
type Info struct {
	Version int    `json:"version"`
	Name    string `json:"name"`
	// PID is the supervisor's.
	PID int `json:"pid"`
	// ChildPID is the container's process, 0 if it is known by path only.
	ChildPID int `json:"child_pid,omitempty"`
	// ChildStart is its start time in clock ticks since boot (proc_pid_stat(5),
	// field 22): with it, a reused pid is recognised.
	ChildStart uint64 `json:"child_start,omitempty"`
	// NetNS is the path that a detached network namespace has in the mount
	// namespace of the container's process; "" when the process lives in it.
	NetNS string `json:"netns,omitempty"`
	// Endpoint is "tap" or "packet"; without an engine it says what the network is
	// instead, "none" or "host".
	Endpoint string `json:"endpoint"`
	// TCP is how TCP leaves the container, "express" or "netstack", and TCPWhy says
	// why it is not the express path, or not for everything.
	TCP    string `json:"tcp"`
	TCPWhy string `json:"tcp_why,omitempty"`
	// Addresses are the container's.
	Addresses []netip.Addr `json:"addresses"`
	Started   time.Time    `json:"started"`
	// Command is the command line, or what is attached to.
	Command []string `json:"command"`
}

// SetChild records the process pid as the container's.
func (i *Info) SetChild(pid int) error {
	start, err := startTime(pid)
	if err != nil {
		return err
	}
	i.ChildPID, i.ChildStart = pid, start
	return nil
}

// CheckChild returns an error if the container's process is not the one recorded.
func (i *Info) CheckChild() error {
	if i.ChildPID == 0 {
		return fmt.Errorf("instance %s: attached by path, it has no process to join", i.Name)
	}
	start, err := startTime(i.ChildPID)
	if err != nil || start != i.ChildStart {
		return fmt.Errorf("instance %s: its process %d has ended", i.Name, i.ChildPID)
	}
	return nil
}

// maxCommand bounds the command line kept in instance.json, bytes of all words.
const maxCommand = 4096

// trim shortens the command line to what instance.json has room for.
func (i *Info) trim() {
	room := maxCommand
	for n, word := range i.Command {
		if len(word) > room {
			i.Command = append(append([]string(nil), i.Command[:n]...), "…")
			return
		}
		room -= len(word)
	}
}

// parseInfo reads an instance.json.
func parseInfo(b []byte) (Info, error) {
	var i Info
	if err := json.Unmarshal(b, &i); err != nil {
		return Info{}, fmt.Errorf("parse %s: %w", infoFile, err)
	}
	if i.Version != infoVersion {
		return Info{}, fmt.Errorf("parse %s: version %d, want %d", infoFile, i.Version, infoVersion)
	}
	return i, nil
}

// startTime reads field 22 of /proc/PID/stat. The second field, the command's
// name in parentheses, may hold anything, so fields count from its end.
func startTime(pid int) (uint64, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, fmt.Errorf("read start time of process %d: %w", pid, err)
	}
	return parseStartTime(string(b))
}

func parseStartTime(stat string) (uint64, error) {
	_, rest, found := strings.Cut(stat[max(0, strings.LastIndexByte(stat, ')')):], ")")
	fields := strings.Fields(rest)
	const index = 22 - 3 // the first field after the name is number 3
	if !found || len(fields) <= index {
		return 0, fmt.Errorf("read start time: malformed stat %.64q", stat)
	}
	start, err := strconv.ParseUint(fields[index], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("read start time: malformed stat %.64q", stat)
	}
	return start, nil
}
