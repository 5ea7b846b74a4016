package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/pflag"
)

// maxConfig bounds a configuration file, bytes.
const maxConfig = 1 << 20

// applyConfig sets the flags that a file names and the command line does not. The
// file has one "flag = value" a line; "#" begins a comment line; a flag that may
// be repeated may have several lines.
func applyConfig(fs *pflag.FlagSet, file string) error {
	if file == "" {
		return nil
	}
	info, err := os.Stat(file)
	if err == nil && info.Size() > maxConfig {
		err = fmt.Errorf("longer than %d bytes", maxConfig)
	}
	var text []byte
	if err == nil {
		text, err = os.ReadFile(file)
	}
	if err != nil {
		return fmt.Errorf("read --config %s: %w", file, pathless(err))
	}
	given := make(map[string]bool)
	fs.Visit(func(f *pflag.Flag) { given[f.Name] = true })
	n := 0
	for line := range strings.Lines(string(text)) {
		n++
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		if err := applyLine(fs, given, line); err != nil {
			return fmt.Errorf("%s:%d: %w", file, n, err)
		}
	}
	return nil
}

func applyLine(fs *pflag.FlagSet, given map[string]bool, line string) error {
	key, value, found := strings.Cut(line, "=")
	if !found {
		return fmt.Errorf("%.64q: want flag = value", line)
	}
	key, value = strings.TrimSpace(key), strings.TrimSpace(value)
	flag := fs.Lookup(key)
	if flag == nil || key == "config" || key == "help" {
		return fmt.Errorf("unknown key %.64q: want the long name of a flag of this command", key)
	}
	if given[key] {
		return nil
	}
	if err := fs.Set(key, value); err != nil {
		return fmt.Errorf("%s: %w", key, err)
	}
	return nil
}

// pathless strips the path from an error of os; the message has it already.
func pathless(err error) error {
	var p *os.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}
