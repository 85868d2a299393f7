// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// show writes v as JSON, or lets table write it for people.
func (c *commands) show(v any, table func(*page)) error {
	if c.output == outputJSON {
		encoder := json.NewEncoder(c.Stdout)
		encoder.SetIndent("", "  ")
		return encoder.Encode(v)
	}
	p := &page{w: c.Stdout, colour: c.Colour, now: c.now()}
	table(p)
	return p.err
}

// style is how a cell looks on a terminal.
type style string

// The styles, as SGR parameters (ECMA-48 section 8.3.117).
const (
	plain  style = ""
	strong style = "1"
	faint  style = "2"
	bad    style = "31"
	good   style = "32"
	warn   style = "33"
)

// cell is a text of a table.
type cell struct {
	text  string
	style style
}

func text(s string) cell { return cell{s, plain} }

// page writes for people and keeps the first error.
type page struct {
	w      io.Writer
	colour bool
	now    time.Time
	err    error
}

func (p *page) printf(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.w, format, args...)
	}
}

func (p *page) paint(c cell) string {
	if !p.colour || c.style == plain {
		return c.text
	}
	return "\x1b[" + string(c.style) + "m" + c.text + "\x1b[0m"
}

// table writes rows in columns as wide as their widest cell. An empty header
// leaves the heading out.
func (p *page) table(header []string, rows [][]cell) {
	if len(header) > 0 {
		head := make([]cell, len(header))
		for i, h := range header {
			head[i] = cell{strings.ToUpper(h), faint}
		}
		rows = append([][]cell{head}, rows...)
	}
	var widths []int
	for _, row := range rows {
		for i, c := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(clean(c.text)))
		}
	}
	for _, row := range rows {
		var line strings.Builder
		for i, c := range row {
			c.text = clean(c.text)
			line.WriteString(p.paint(c))
			if i < len(row)-1 {
				line.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(c.text)+2))
			}
		}
		p.printf("%s\n", strings.TrimRight(line.String(), " "))
	}
}

// clean keeps what others named from moving the cursor, or worse.
func clean(s string) string {
	if s == "" {
		return "-"
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return '?'
		}
		return r
	}, s)
}

// ago is how long before now t was: "3h12m".
func (p *page) ago(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return brief(p.now.Sub(t)) + " ago"
}

// until is how long after now t will be.
func (p *page) until(t time.Time) cell {
	left := t.Sub(p.now)
	switch {
	case t.IsZero():
		return text("")
	case left <= 0:
		return cell{"expired " + brief(-left) + " ago", bad}
	default:
		return text("in " + brief(left))
	}
}

// brief is a duration in its two greatest units.
func brief(d time.Duration) string {
	const day = 24 * time.Hour
	switch {
	case d < time.Millisecond:
		return strconv.FormatInt(max(0, d.Microseconds()), 10) + "µs"
	case d < time.Second:
		return strconv.FormatInt(d.Milliseconds(), 10) + "ms"
	case d < time.Minute:
		return strconv.FormatInt(int64(d/time.Second), 10) + "s"
	case d < time.Hour:
		return fmt.Sprintf("%dm%ds", d/time.Minute, d%time.Minute/time.Second)
	case d < 2*day:
		return fmt.Sprintf("%dh%dm", d/time.Hour, d%time.Hour/time.Minute)
	default:
		return fmt.Sprintf("%dd%dh", d/day, d%day/time.Hour)
	}
}

// size is a number of bytes in a unit that fits.
func size(n uint64) string {
	if n < 1024 {
		return strconv.FormatUint(n, 10) + " B"
	}
	v, unit := float64(n)/1024, 0
	for v >= 1024 && unit < 4 {
		v /= 1024
		unit++
	}
	return fmt.Sprintf("%.1f %ciB", v, "KMGTP"[unit])
}

func plural(n int, one string) string {
	if n == 1 {
		return "1 " + one
	}
	many := one + "s"
	if strings.HasSuffix(one, "y") {
		many = strings.TrimSuffix(one, "y") + "ies"
	} else if strings.HasSuffix(one, "f") {
		many = strings.TrimSuffix(one, "f") + "ves"
	}
	return fmt.Sprintf("%d %s", n, many)
}
