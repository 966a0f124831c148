package git

import (
	"slices"
	"strings"
)

// setting is one value of a configuration file.
type setting struct {
	section string // in lower case
	sub     string
	key     string // in lower case
	value   string
}

// maxConfig limits the configuration files that are read, in bytes.
const maxConfig = 1 << 20

// readConfig reads the text of a configuration file, as git-config(1) describes it, up to its first mistake. Includes are not
// followed.
func readConfig(text string) []setting {
	p := configParser{text: text}
	var list []setting
	var section, sub string
	for {
		p.skip(" \t\r\n")
		switch p.peek() {
		case 0:
			return list
		case '#', ';':
			p.skipLine()
		case '[':
			var ok bool
			if section, sub, ok = p.header(); !ok {
				return list
			}
		default:
			key := strings.ToLower(p.word())
			if key == "" || section == "" {
				return list
			}
			p.skip(" \t\r")
			value := "true"
			if p.peek() == '=' {
				p.next()
				var ok bool
				if value, ok = p.value(); !ok {
					return list
				}
			} else if c := p.peek(); c != '\n' && c != 0 && c != '#' && c != ';' {
				return list
			}
			list = append(list, setting{section: section, sub: sub, key: key, value: value})
		}
	}
}

// lastValue returns the value that is in force, or nothing.
func lastValue(list []setting, section, sub, key string) string {
	for _, s := range slices.Backward(list) {
		if s.section == section && s.sub == sub && s.key == key {
			return s.value
		}
	}
	return ""
}

type configParser struct {
	text string
	at   int
}

// peek returns the next byte; 0 is the end.
func (p *configParser) peek() byte {
	if p.at >= len(p.text) {
		return 0
	}
	return p.text[p.at]
}

func (p *configParser) next() byte {
	c := p.peek()
	p.at++
	return c
}

func (p *configParser) skip(set string) {
	for p.at < len(p.text) && strings.IndexByte(set, p.text[p.at]) >= 0 {
		p.at++
	}
}

func (p *configParser) skipLine() {
	for p.at < len(p.text) && p.text[p.at] != '\n' {
		p.at++
	}
}

func (p *configParser) word() string {
	from := p.at
	for p.at < len(p.text) {
		c := p.text[p.at]
		if c != '-' && c != '.' && (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') {
			break
		}
		p.at++
	}
	return p.text[from:p.at]
}

// header reads [section], [section "sub"] or the old [section.sub].
func (p *configParser) header() (section, sub string, ok bool) {
	p.next()
	section = strings.ToLower(p.word())
	if before, after, old := strings.Cut(section, "."); old {
		section, sub = before, after
	}
	p.skip(" \t")
	if p.peek() == '"' {
		p.next()
		var b strings.Builder
		for {
			c := p.next()
			switch c {
			case 0, '\n':
				return "", "", false
			case '"':
				p.skip(" \t")
				sub = b.String()
				return section, sub, p.next() == ']' && section != ""
			case '\\':
				c = p.next()
			}
			b.WriteByte(c)
		}
	}
	return section, sub, p.next() == ']' && section != ""
}

// value reads what stands behind the equals sign.
func (p *configParser) value() (string, bool) {
	p.skip(" \t")
	var b strings.Builder
	quoted := false
	kept := 0 // the length without spaces at the end
	for {
		c := p.next()
		switch {
		case c == 0 || c == '\n':
			return b.String()[:kept], !quoted
		case c == '\r' && (p.peek() == '\n' || p.peek() == 0):
			continue
		case !quoted && (c == '#' || c == ';'):
			p.skipLine()
			continue
		case c == '"':
			quoted = !quoted
			kept = b.Len()
			continue
		case c == '\\':
			switch c = p.next(); c {
			case '\n':
				continue
			case 'n':
				c = '\n'
			case 't':
				c = '\t'
			case 'b':
				c = '\b'
			case '"', '\\':
			default:
				return "", false
			}
			b.WriteByte(c)
			kept = b.Len()
			continue
		}
		b.WriteByte(c)
		if quoted || c != ' ' && c != '\t' {
			kept = b.Len()
		}
	}
}

// configText builds the text of a configuration file.
type configText struct{ strings.Builder }

func (c *configText) section(name, sub string, values ...[2]string) {
	c.WriteString("[" + name)
	if sub != "" {
		c.WriteString(` "` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(sub) + `"`)
	}
	c.WriteString("]\n")
	for _, v := range values {
		c.WriteString("\t" + v[0] + ` = "` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`, "\t", `\t`).Replace(v[1]) + "\"\n")
	}
}
