package portdriver

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// maxSpecText bounds the text of a Spec: two paths, and room for the rest.
const maxSpecText = 512

// The parts of the text form that are words.
const (
	unixPrefix    = "unix:"
	fdPrefix      = "fd:"
	reversePrefix = "reverse:"
	proxySuffix   = ",proxy="
)

// specForm is what an error about the whole shape of a spec wants.
const specForm = "want [HOSTIP:][HOSTPORT]:[CTRIP:]CTRPORT[/PROTO]"

// ParseSpec reads the text form of a Spec.
//
//	80                           any free host port to the container's port 80
//	8080:80                      127.0.0.1 and ::1
//	0.0.0.0:8080:80/udp          [::]:8080:80 is IPv6 only
//	[fe80::1%eth0]:8080:[::1]:80 the container's loopback
//	127.0.0.1::80                a free port of one address
//	8000-8010:80-90              a range is one rule
//	8080:80,proxy=v2             with a PROXY protocol header
//	unix:/run/web.sock:80        a unix socket on the host
//	8080:unix:/run/web.sock      a unix socket in the container
//	fd:web:80                    an inherited listener (LISTEN_FDNAMES), or fd:0:80
//	reverse:unix:/run/db.sock:5432   the container's port 5432 to a socket on the host
//
// PROTO is tcp (the default), tcp4, tcp6, udp, udp4 or udp6 in any case; it is about
// the side where clients come. A rule that ends in a path has none. An empty HOSTIP
// may keep its colon, as in RootlessKit's form. The error is one line, quotes the
// text, and matches ErrSpec.
func ParseSpec(text string) (Spec, error) {
	s, err := parseSpec(text)
	if err == nil {
		err = s.check()
	}
	if err != nil {
		return Spec{}, mark(fmt.Errorf("port spec %s: %w", quote(text), err), ErrSpec)
	}
	return s, nil
}

func parseSpec(text string) (s Spec, err error) {
	switch {
	case text == "":
		return s, fmt.Errorf("it is empty, %s", specForm)
	case len(text) > maxSpecText:
		return s, fmt.Errorf("%d bytes, want at most %d", len(text), maxSpecText)
	}
	s.Count = 1
	rest := text
	if i := strings.LastIndex(rest, proxySuffix); i >= 0 {
		if s.Proxy, err = parseProxy(rest[i+len(proxySuffix):]); err != nil {
			return s, err
		}
		rest = rest[:i]
	}
	if rest, s.Reverse = strings.CutPrefix(rest, reversePrefix); s.Reverse && !strings.HasPrefix(rest, unixPrefix) {
		return s, fmt.Errorf("a reverse rule leads to a unix socket of the host, want reverse:unix:/PATH:[CTRIP:]CTRPORT")
	}
	if word, ok := strings.CutPrefix(rest, unixPrefix); ok {
		s.Host.Path, rest, ok = strings.Cut(word, ":")
		if err := wantPath(s.Host.Path); err != nil {
			return s, err
		}
		return s, s.parseWord(rest, ok, "unix:/PATH:CTRPORT")
	}
	if word, ok := strings.CutPrefix(rest, fdPrefix); ok {
		s.Host.FD, rest, ok = strings.Cut(word, ":")
		if s.Host.FD == "" {
			return s, fmt.Errorf("the inherited listener has no name, want fd:NAME:CTRPORT")
		}
		return s, s.parseWord(rest, ok, "fd:NAME:CTRPORT")
	}
	if host, path, ok := strings.Cut(rest, ":"+unixPrefix); ok {
		s.Proto, s.Container.Path = TCP, path
		if s.Count, err = s.parseHost(host); err == nil {
			err = wantPath(path)
		}
		s.Count = max(s.Count, 1)
		return s, err
	}
	return s, s.parseInternet(rest)
}

// parseWord parses what follows a host side that is a word and a name; ok says
// whether a colon was there.
func (s *Spec) parseWord(rest string, ok bool, form string) (err error) {
	if !ok {
		return fmt.Errorf("the container's port is missing, want %s", form)
	}
	if path, ok := strings.CutPrefix(rest, unixPrefix); ok {
		s.Proto, s.Container.Path = TCP, path
		return wantPath(path)
	}
	if rest, s.Proto, err = cutProto(rest); err != nil {
		return err
	}
	fields, err := splitFields(rest)
	if err != nil {
		return err
	}
	if len(fields) > 2 {
		return fmt.Errorf("too many parts, want %s or an address before CTRPORT", form)
	}
	if len(fields) == 2 {
		if s.Container.Addr, err = parseAddr(fields[0], "container"); err != nil {
			return err
		}
	}
	s.Container.Port, s.Count, err = parsePorts(fields[len(fields)-1], "container")
	return err
}

// wantPath refuses an empty path, which would mean no path.
func wantPath(path string) error {
	if path == "" {
		return errors.New("the unix socket's path is empty, want an absolute one")
	}
	return nil
}

// parseInternet parses [HOSTIP:][HOSTPORT]:[CTRIP:]CTRPORT[/PROTO] and CTRPORT.
func (s *Spec) parseInternet(text string) (err error) {
	if text, s.Proto, err = cutProto(text); err != nil {
		return err
	}
	fields, err := splitFields(text)
	if err != nil {
		return err
	}
	last := len(fields) - 1
	if s.Container.Port, s.Count, err = parsePorts(fields[last], "container"); err != nil || last == 0 {
		return err
	}
	switch fields, last = fields[:last], last-1; {
	case last == 0 && isAddr(fields[0]):
		return fmt.Errorf("%s has no host port beside it, want %s for any free one", quote(fields[0]), quote(fields[0]+"::"+ports(s.Container.Port, s.Count)))
	case last > 0 && isAddr(fields[last]), last == 2 && fields[last] == "":
		// The container's address; RootlessKit allows an empty one.
		if fields[last] != "" {
			if s.Container.Addr, err = parseAddr(fields[last], "container"); err != nil {
				return err
			}
		}
		fields = fields[:last]
	}
	count, err := s.parseHost(strings.Join(fields, ":"))
	if err == nil && count != s.Count && count != 0 {
		err = fmt.Errorf("%d host ports for %d container ports, want ranges of equal length", count, s.Count)
	}
	return err
}

// parseHost parses [HOSTIP:][HOSTPORT] and returns how many ports it names, 0 if
// any free ones are meant.
func (s *Spec) parseHost(text string) (count int, err error) {
	fields, err := splitFields(text)
	if err != nil {
		return 0, err
	}
	switch n := len(fields); {
	case n > 2:
		return 0, fmt.Errorf("too many parts, %s; IPv6 addresses stand in brackets", specForm)
	case n == 2 && isAddr(fields[1]):
		return 0, fmt.Errorf("a host port is missing between two addresses, %s", specForm)
	case n == 2 && fields[0] != "":
		if s.Host.Addr, err = parseAddr(fields[0], "host"); err != nil {
			return 0, err
		}
	case n == 1 && isAddr(fields[0]):
		return 0, fmt.Errorf("%s has no host port beside it, %s", quote(fields[0]), specForm)
	}
	port := fields[len(fields)-1]
	if strings.Trim(port, "0") == "" { // empty or 0: any free one
		return 0, nil
	}
	s.Host.Port, count, err = parsePorts(port, "host")
	return count, err
}

// quote quotes what a user wrote, cut if it is long.
func quote(text string) string {
	if len(text) > maxSpecText {
		return strconv.Quote(text[:maxSpecText]) + "…"
	}
	return strconv.Quote(text)
}
