package ocihook

import (
	"fmt"
	"io"
	"sync"

	"github.com/postern-net/postern/cmd/postern/internal/hostconf"
	"github.com/postern-net/postern/cmd/postern/internal/supervisor"
	"github.com/postern-net/postern/proto/dns"
	"github.com/postern-net/postern/userns/bundle"
)

// Files keeps the resolv.conf of a bundle's containers up to date while one of them
// runs: its search list is the host's, and hosts roam. It owns one goroutine, which
// Close ends and awaits.
type Files struct {
	dir     string
	cfg     supervisor.Config
	log     io.Writer
	watcher *hostconf.Watcher
	stop    chan struct{}
	done    sync.WaitGroup
}

// KeepFiles begins with what the host says now. Dir is the bundle's SideDir, "" for
// none, and path the host's resolv.conf.
func KeepFiles(dir, path string, cfg supervisor.Config, log io.Writer) *Files {
	if dir == "" {
		return nil
	}
	f := &Files{dir: dir, cfg: cfg, log: log, stop: make(chan struct{})}
	host, err := hostconf.Read(path)
	if err == nil { // the instance complains of what cannot be read
		f.write(host)
	}
	f.watcher = hostconf.Watch(path, host)
	f.done.Add(1)
	go f.follow()
	return f
}

func (f *Files) follow() {
	defer f.done.Done()
	for {
		select {
		case host := <-f.watcher.Changes():
			f.write(host)
		case <-f.stop:
			return
		}
	}
}

func (f *Files) write(host dns.ResolvConf) {
	text, _, err := supervisor.HostFiles(f.cfg, host, "")
	if err == nil {
		err = bundle.Refresh(f.dir, text, nil)
	}
	if err != nil {
		_, _ = fmt.Fprintf(f.log, "postern: the container's resolv.conf keeps its old search list: %v\n", err)
	}
}

// Close ends the keeping. A nil Files keeps nothing.
func (f *Files) Close() {
	if f == nil {
		return
	}
	close(f.stop)
	f.done.Wait()
	f.watcher.Close()
}
