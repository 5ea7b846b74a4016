package bundle

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// object is a JSON object: its members in their order, values as they stand.
type object []member

type member struct {
	key   string
	value json.RawMessage
}

// parseObject reads an object and nothing after it. A name that stands twice, also
// in another case, is refused: the runtimes' decoder would take either for the
// other, and we must not edit one while it obeys its twin.
func parseObject(text []byte, fold bool) (object, error) {
	d := json.NewDecoder(bytes.NewReader(text))
	t, err := d.Token()
	if err != nil {
		return nil, fmt.Errorf("parse JSON: %w", err)
	}
	if t != json.Delim('{') {
		return nil, errors.New("parse JSON: want an object")
	}
	var o object
	seen := make(map[string]string)
	for d.More() {
		m, err := parseMember(d)
		if err != nil {
			return nil, err
		}
		name := m.key
		if fold {
			name = strings.ToLower(name)
		}
		if twin, ok := seen[name]; ok {
			return nil, fmt.Errorf("parse JSON: member %.64q stands beside %.64q; remove one", m.key, twin)
		}
		seen[name] = m.key
		o = append(o, m)
	}
	if _, err := d.Token(); err != nil { // the closing brace
		return nil, fmt.Errorf("parse JSON: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("parse JSON: something follows the object")
	}
	return o, nil
}

func parseMember(d *json.Decoder) (m member, err error) {
	t, err := d.Token()
	if err != nil {
		return m, fmt.Errorf("parse JSON: %w", err)
	}
	m.key, _ = t.(string) // the decoder accepts nothing else in this place
	if err := d.Decode(&m.value); err != nil {
		return m, fmt.Errorf("parse JSON: member %.64q: %w", m.key, err)
	}
	return m, nil
}

// get returns a member's value, nil if there is none or it is null. Names compare
// as the runtimes' decoder compares them.
func (o object) get(key string) json.RawMessage {
	if i := o.index(key); i >= 0 && string(o[i].value) != "null" {
		return o[i].value
	}
	return nil
}

// has reports whether there is a member, be it null.
func (o object) has(key string) bool { return o.index(key) >= 0 }

func (o object) index(key string) int {
	return slices.IndexFunc(o, func(m member) bool { return strings.EqualFold(m.key, key) })
}

// set gives a member a value, at its place or at the end; nil removes it.
func (o *object) set(key string, value json.RawMessage) {
	i := o.index(key)
	switch {
	case i >= 0 && value == nil:
		*o = slices.Delete(*o, i, i+1)
	case i >= 0:
		(*o)[i].value = value
	case value != nil:
		*o = append(*o, member{key, value})
	}
}

// object returns a member that is an object; an empty one if it is missing.
func (o object) object(key string, fold bool) (object, error) {
	value := o.get(key)
	if value == nil {
		return nil, nil
	}
	inner, err := parseObject(value, fold)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	return inner, nil
}

// setObject is set for an object. An empty one removes the member unless keep.
func (o *object) setObject(key string, value object, keep bool) {
	if len(value) == 0 && !keep {
		o.set(key, nil)
		return
	}
	o.set(key, value.text())
}

// list decodes a member that is a list; none if it is missing.
func list[T any](o object, key string) ([]T, error) {
	value := o.get(key)
	if value == nil {
		return nil, nil
	}
	var items []T
	if err := json.Unmarshal(value, &items); err != nil {
		return nil, fmt.Errorf("%s: parse JSON: %w", key, err)
	}
	return items, nil
}

// setList is set for a list. An empty one removes the member unless keep.
func setList[T any](o *object, key string, items []T, keep bool) {
	switch {
	case len(items) > 0:
		o.set(key, encode(items))
	case keep:
		o.set(key, json.RawMessage("[]"))
	default:
		o.set(key, nil)
	}
}

// text is the object as JSON, not indented.
func (o object) text() json.RawMessage {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, m := range o {
		if i > 0 {
			b.WriteByte(',')
		}
		b.Write(encode(m.key))
		b.WriteByte(':')
		b.Write(m.value)
	}
	b.WriteByte('}')
	return b.Bytes()
}

// encode is v as JSON without HTML's escapes, which no config.json has. It is used
// for strings, numbers, and structures of them, which can always be encoded.
func encode(v any) json.RawMessage {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		panic("encode " + fmt.Sprintf("%T", v) + ": " + err.Error())
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}

// layout is how a file is indented.
type layout struct {
	indent  string // of the first level; "" for a file of one line
	newline bool   // at the end
}

func layoutOf(text []byte) layout {
	l := layout{newline: bytes.HasSuffix(text, []byte("\n"))}
	if i := bytes.IndexByte(text, '\n'); i >= 0 {
		rest := text[i+1:]
		l.indent = string(rest[:len(rest)-len(bytes.TrimLeft(rest, " \t"))])
	}
	return l
}

// format lays an object out.
func (l layout) format(o object) ([]byte, error) {
	var b bytes.Buffer
	var err error
	if l.indent == "" {
		err = json.Compact(&b, o.text())
	} else {
		err = json.Indent(&b, o.text(), "", l.indent)
	}
	if err != nil {
		return nil, fmt.Errorf("write JSON: %w", err)
	}
	if l.newline {
		b.WriteByte('\n')
	}
	return b.Bytes(), nil
}
