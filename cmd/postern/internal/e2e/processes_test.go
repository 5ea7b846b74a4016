package e2e

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// process is a living process.
type process struct {
	pid, parent int
	command     string
}

// processes lists the living processes of the tests' PID namespace. One whose first thread
// has ended lives as long as another of its threads, with all its descriptors.
func processes() []process {
	var all []process
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		pid, _ := strconv.Atoi(filepath.Base(dir))
		stat, err := os.ReadFile(dir + "/stat")
		if err != nil {
			continue
		}
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		if len(fields) < 2 || fields[0] == "X" {
			continue
		}
		if threads, _ := os.ReadDir(dir + "/task"); fields[0] == "Z" && len(threads) < 2 {
			continue
		}
		command, _ := os.ReadFile(dir + "/cmdline")
		p := process{pid: pid, command: strings.TrimSpace(strings.ReplaceAll(string(command), "\x00", " "))}
		p.parent, _ = strconv.Atoi(fields[1])
		all = append(all, p)
	}
	return all
}

// family lists a process and all its descendants.
func family(pid int) []process {
	all := processes()
	in := map[int]bool{pid: true}
	for range all {
		for _, p := range all {
			in[p.pid] = in[p.pid] || in[p.parent]
		}
	}
	var list []process
	for _, p := range all {
		if in[p.pid] {
			list = append(list, p)
		}
	}
	return list
}

// alive returns those of list that still live.
func alive(list []process) []process {
	now := map[int]string{}
	for _, p := range processes() {
		now[p.pid] = p.command
	}
	var left []process
	for _, p := range list {
		if _, ok := now[p.pid]; ok {
			left = append(left, p)
		}
	}
	return left
}

// find returns the process of list that runs a command, nil if there is none.
func find(list []process, command string) *process {
	for n := range list {
		if list[n].command == command {
			return &list[n]
		}
	}
	return nil
}
