package ocihook

import (
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// maxJournal bounds the server's file, bytes: it lies in memory, and a container
// may give reason to complain for as long as it runs.
const maxJournal = 1 << 20

// Journal passes the lines of a server on to its file, up to a limit. It owns one
// goroutine, which Close ends and awaits.
type Journal struct {
	path    string
	to      *os.File
	write   *os.File
	copying sync.WaitGroup
}

// OpenJournal passes lines on to a file, whose path is for Close.
func OpenJournal(to *os.File, path string) (*Journal, error) {
	read, write, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("open the server's journal: %w", err)
	}
	j := &Journal{path: path, to: to, write: write}
	j.copying.Add(1)
	go j.copy(to, read)
	return j, nil
}

func (j *Journal) copy(to, from *os.File) {
	defer j.copying.Done()
	defer from.Close()
	n, err := io.CopyN(to, from, maxJournal)
	if err == nil && n == maxJournal {
		_, _ = io.WriteString(to, "\npostern: more is not kept\n")
	}
	_, _ = io.Copy(io.Discard, from) // also when the disk is full: nobody may wait for it
}

// File is where to write.
func (j *Journal) File() *os.File { return j.write }

// Close ends the journal. If all went well, its file goes too.
func (j *Journal) Close(well bool) {
	_ = j.write.Close()
	j.copying.Wait()
	if well && j.isOurs() {
		_ = unix.Unlink(j.path) // gone already if the hook was at it
	}
}

// isOurs reports whether the path leads to our file: by now it may be that of the
// container's next server.
func (j *Journal) isOurs() bool {
	var byName, byFD unix.Stat_t
	return unix.Lstat(j.path, &byName) == nil && unix.Fstat(int(j.to.Fd()), &byFD) == nil &&
		byName.Dev == byFD.Dev && byName.Ino == byFD.Ino
}
