package slirp4netns

import (
	"bytes"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// object is a JSON object. The other values are string, float64, bool and nil, and
// array, whose elements nobody asks for.
type (
	object map[string]any
	array  struct{}
)

// parser reads one text. Recursion is bounded by MaxRequest.
type parser struct {
	text []byte
	at   int
}

// parse returns the first value of a text. The error is ErrJSON or ErrIncomplete.
func parse(text []byte) (any, error) {
	return (&parser{text: bytes.TrimPrefix(text, []byte("\xef\xbb\xbf"))}).value()
}

// peek skips white space, as isspace(3) has it, and returns the next byte, which
// stays; 0 at the end.
func (p *parser) peek() byte {
	for ; p.at < len(p.text); p.at++ {
		if c := p.text[p.at]; c != ' ' && (c < '\t' || c > '\r') {
			return c
		}
	}
	return 0
}

// bad is the error for the byte at hand: it is wrong, or absent.
func (p *parser) bad() error {
	if p.at >= len(p.text) {
		return ErrIncomplete
	}
	return ErrJSON
}

// skip skips c after white space.
func (p *parser) skip(c byte) error {
	if p.peek() != c {
		return p.bad()
	}
	p.at++
	return nil
}

func (p *parser) value() (any, error) {
	switch c := p.peek(); {
	case c == '{':
		return p.object()
	case c == '[':
		return p.array()
	case c == '"':
		s, _, err := p.string()
		return s, err
	case c == '-' || '0' <= c && c <= '9':
		return p.number()
	case c == 't':
		return true, p.word("true")
	case c == 'f':
		return false, p.word("false")
	case c == 'n':
		return nil, p.word("null")
	}
	return nil, p.bad()
}

// word skips a name. What follows need not be separated.
func (p *parser) word(name string) error {
	for i := range len(name) {
		if p.at >= len(p.text) || p.text[p.at] != name[i] {
			return p.bad()
		}
		p.at++
	}
	return nil
}

func (p *parser) object() (any, error) {
	o := object{}
	return o, p.members('}', func() error {
		if p.peek() != '"' {
			return p.bad()
		}
		name, cut, err := p.string()
		if err != nil {
			return err
		}
		if _, twice := o[name]; twice || cut {
			return ErrJSON
		}
		if err := p.skip(':'); err != nil {
			return err
		}
		o[name], err = p.value()
		return err
	})
}

func (p *parser) array() (any, error) {
	return array{}, p.members(']', func() error {
		_, err := p.value()
		return err
	})
}

// members reads what stands between a bracket, which is next, and its closing one.
func (p *parser) members(closing byte, member func() error) error {
	p.at++
	if p.peek() == closing {
		p.at++
		return nil
	}
	for {
		if err := member(); err != nil {
			return err
		}
		if p.peek() != ',' {
			return p.skip(closing)
		}
		p.at++
	}
}

// number reads as much as strtod(3) would. Only a zero before a point may lead.
func (p *parser) number() (any, error) {
	start := p.at
	if p.text[p.at] == '-' {
		p.at++
	}
	first := p.at
	digits := p.digits()
	if p.at < len(p.text) && p.text[p.at] == '.' {
		p.at++
		digits += p.digits()
	}
	if digits == 0 {
		return nil, p.bad()
	}
	if err := p.exponent(); err != nil {
		return nil, err
	}
	s := string(p.text[start:p.at])
	if unsigned := s[first-start:]; len(unsigned) > 1 && unsigned[0] == '0' && unsigned[1] != '.' {
		return nil, ErrJSON
	}
	f, err := strconv.ParseFloat(s, 64)
	if err != nil { // too large; what is too small is 0
		return nil, ErrJSON
	}
	return f, nil
}

// digits skips digits and returns how many.
func (p *parser) digits() int {
	start := p.at
	for p.at < len(p.text) && '0' <= p.text[p.at] && p.text[p.at] <= '9' {
		p.at++
	}
	return p.at - start
}

// exponent skips an exponent, if there is a whole one. One that may become whole is
// ErrIncomplete.
func (p *parser) exponent() error {
	back := p.at
	if p.at == len(p.text) || p.text[p.at]|0x20 != 'e' {
		return nil
	}
	p.at++
	if p.at < len(p.text) && (p.text[p.at] == '+' || p.text[p.at] == '-') {
		p.at++
	}
	if p.digits() > 0 {
		return nil
	}
	if p.at == len(p.text) {
		return ErrIncomplete
	}
	p.at = back
	return nil
}

// string reads a string, whose quotation mark is next. It ends at an escaped NUL, as
// C has it; cut says that there was one.
func (p *parser) string() (s string, cut bool, err error) {
	p.at++
	var b []byte
	for p.at < len(p.text) {
		switch c := p.text[p.at]; {
		case c == '"':
			p.at++
			s, _, cut = strings.Cut(string(b), "\x00")
			return s, cut, nil
		case c < ' ':
			return "", false, ErrJSON
		case c == '\\':
			p.at++
			if b, err = p.escape(b); err != nil {
				return "", false, err
			}
		default:
			b = append(b, c)
			p.at++
		}
	}
	return "", false, ErrIncomplete
}

// escape appends what stands after a backslash.
func (p *parser) escape(b []byte) ([]byte, error) {
	const names, meanings = `"\/bfnrt`, "\"\\/\b\f\n\r\t"
	if p.at == len(p.text) {
		return nil, ErrIncomplete
	}
	c := p.text[p.at]
	if i := strings.IndexByte(names, c); i >= 0 {
		p.at++
		return append(b, meanings[i]), nil
	}
	r, err := p.unit()
	if err != nil {
		return nil, err
	}
	if utf16.IsSurrogate(r) { // half of a character (RFC 8259 section 7)
		if err := p.word(`\`); err != nil {
			return nil, err
		}
		low, err := p.unit()
		if err != nil {
			return nil, err
		}
		if r = utf16.DecodeRune(r, low); r == utf8.RuneError {
			return nil, ErrJSON
		}
	}
	return utf8.AppendRune(b, r), nil
}

// unit reads the letter u and four hexadecimal digits.
func (p *parser) unit() (r rune, err error) {
	if err := p.word("u"); err != nil {
		return 0, err
	}
	for range 4 {
		if p.at >= len(p.text) {
			return 0, ErrIncomplete
		}
		digit := strings.IndexByte("0123456789abcdef", p.text[p.at]|0x20)
		if c := p.text[p.at]; digit < 0 || digit < 10 && c != '0'+byte(digit) {
			return 0, ErrJSON
		}
		r = r<<4 | rune(digit)
		p.at++
	}
	return r, nil
}
