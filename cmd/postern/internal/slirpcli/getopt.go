package slirpcli

import (
	"fmt"
	"strings"
)

// option is one that the program knows.
type option struct {
	long     string
	short    byte // 0 for none
	argument bool // it takes one
	// apply notes the option in o; arg is "" for one without argument.
	apply func(o *Options, arg string) error
}

// given is an option as it was given.
type given struct {
	option *option
	arg    string
}

// scanner takes a command line apart as getopt_long(3) does.
type scanner struct {
	options  []option
	args     []string
	bundle   string // what is left of a word of short options
	operands []string
}

// next returns the next option, nil at the end. The operands met on the way, and
// behind the end, are in s.operands.
func (s *scanner) next() (*given, error) {
	for s.bundle == "" {
		if len(s.args) == 0 {
			return nil, nil
		}
		word := s.args[0]
		s.args = s.args[1:]
		switch {
		case word == "--":
			s.operands = append(s.operands, s.args...)
			s.args = nil
		case strings.HasPrefix(word, "--"):
			return s.long(word[2:])
		case len(word) > 1 && word[0] == '-':
			s.bundle = word[1:]
		default: // a lone "-" is an operand
			s.operands = append(s.operands, word)
		}
	}
	return s.short()
}

// short takes the first option of the bundle.
func (s *scanner) short() (*given, error) {
	letter := s.bundle[0]
	s.bundle = s.bundle[1:]
	for i := range s.options {
		o := &s.options[i]
		if o.short != letter {
			continue
		}
		if !o.argument {
			return &given{option: o}, nil
		}
		arg := s.bundle
		s.bundle = ""
		if arg == "" && !s.take(&arg) {
			return nil, fmt.Errorf("option requires an argument -- '%c'", letter)
		}
		return &given{o, arg}, nil
	}
	return nil, fmt.Errorf("invalid option -- '%c'", letter)
}

// long takes an option whose word, without the dashes, is name or name=argument.
func (s *scanner) long(word string) (*given, error) {
	name, arg, attached := strings.Cut(word, "=")
	o, err := s.find(name, word)
	switch {
	case err != nil:
		return nil, err
	case !o.argument && attached:
		return nil, fmt.Errorf("option '--%s' doesn't allow an argument", o.long)
	case o.argument && !attached && !s.take(&arg):
		return nil, fmt.Errorf("option '--%s' requires an argument", o.long)
	}
	return &given{o, arg}, nil
}

// take moves the next word, whatever it looks like, to arg.
func (s *scanner) take(arg *string) bool {
	if len(s.args) == 0 {
		return false
	}
	*arg, s.args = s.args[0], s.args[1:]
	return true
}

// find returns the option of a name, or the one that the name abbreviates.
func (s *scanner) find(name, word string) (*option, error) {
	var found []*option
	for i := range s.options {
		o := &s.options[i]
		if o.long == name {
			return o, nil
		}
		if strings.HasPrefix(o.long, name) {
			found = append(found, o)
		}
	}
	switch len(found) {
	case 0:
		return nil, fmt.Errorf("unrecognized option '--%s'", word)
	case 1:
		return found[0], nil
	}
	var b strings.Builder
	for _, o := range found {
		fmt.Fprintf(&b, " '--%s'", o.long)
	}
	return nil, fmt.Errorf("option '--%s' is ambiguous; possibilities:%s", word, &b)
}
