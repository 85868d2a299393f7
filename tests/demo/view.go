// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"
)

// view shows who talks to whom: in place on a terminal, else as a block of
// lines now and then.
type view struct {
	w        io.Writer
	terminal bool
	// every is the time between refreshes.
	every time.Duration
}

func newView(w io.Writer) view {
	v := view{w: w, every: 5 * time.Second}
	if f, ok := w.(*os.File); ok {
		_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
		v.terminal = err == nil
	}
	if v.terminal {
		v.every = time.Second
	}
	return v
}

// refresh writes the table.
func (v view) refresh(title string, all []*traffic, o *observer) {
	var b strings.Builder
	if v.terminal {
		b.WriteString("\x1b[H\x1b[2J") // home, clear
	}
	fmt.Fprintln(&b, title)
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "CALLER\tCALLED\tPATH\tREQ/S\tERR/S\tP50\tP99\tIDENTITIES")
	for i, tr := range all {
		c := &calls[i]
		s := o.of(c)
		seconds := max(tr.last.Seconds, 1e-3)
		fmt.Fprintf(t, "%s\t%s\t%s\t%.0f\t%s\t%s\t%s\t%s\n", c.from(), calledText(c, tr), pathText(c, tr, s),
			float64(tr.last.Requests)/seconds, errorText(tr, seconds), micros(tr.last.P50), micros(tr.last.P99), identityText(s))
	}
	_ = t.Flush() // to memory
	b.WriteByte('\n')
	_, _ = io.WriteString(v.w, b.String()) // nothing helps when it fails
}

// calledText names the service and the servers that answered.
func calledText(c *call, t *traffic) string {
	if len(c.to) > 1 && len(t.servers) > 0 {
		var parts []string
		for _, name := range c.to {
			parts = append(parts, fmt.Sprintf("%s %d", name, t.servers[name]))
		}
		return c.target() + " (" + strings.Join(parts, ", ") + ")"
	}
	return c.target()
}

// pathText is the node's word, which knows nothing of those who are no
// workload.
func pathText(c *call, t *traffic, s sighting) string {
	switch {
	case t.requests == 0 && t.errors > 0:
		if reasons := slices.Sorted(maps.Keys(s.ended)); len(reasons) > 0 {
			return pathDenied + " (" + strings.Join(reasons, ", ") + ")"
		}
		return pathDenied
	case len(s.paths) > 0:
		return list(s.paths)
	case t.requests > 0 && c.workload == "":
		return pathNone
	}
	return "?"
}

func errorText(t *traffic, seconds float64) string {
	if t.last.Errors == 0 {
		return "-"
	}
	return fmt.Sprintf("%.0f %s", float64(t.last.Errors)/seconds, t.last.Error)
}

func micros(us int64) string {
	if us == 0 {
		return "-"
	}
	return (time.Duration(us) * time.Microsecond).String()
}

// identityText shortens "spiffe://domain/ns/default/sa/web" to "web".
func identityText(s sighting) string {
	short := func(set map[string]bool) string {
		text := list(set)
		if text == "" {
			return "-"
		}
		return text[strings.LastIndex(text, "/")+1:]
	}
	if len(s.from) == 0 && len(s.to) == 0 {
		return ""
	}
	return "spiffe://…/" + short(s.from) + " → " + short(s.to)
}
