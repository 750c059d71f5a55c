package cli

import (
	"io"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/rivo/uniseg"
)

// table lines up columns. On a terminal it shortens the widest so that a row
// is one line; elsewhere every cell is whole.
type table struct {
	a      *app
	header []string
	right  map[string]bool // headers of the columns that are flush right
	rows   [][]string
	shown  bool // the header is out
}

func (a *app) table(header ...string) *table {
	return &table{a: a, header: header, right: map[string]bool{}}
}

// row adds one; control characters are replaced, so that what is stored cannot
// steer a terminal.
func (t *table) row(cells ...string) {
	for i, cell := range cells {
		cells[i] = printable(cell)
	}
	t.rows = append(t.rows, cells)
}

// printable replaces what a terminal might take for more than text.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}

// colors are what paint puts around text.
var colors = regexp.MustCompile("\x1b\\[[0-9;]*m")

// clip cuts a line that takes more than so many columns. Colours take none, and
// stay, so that they also end.
func clip(line string, columns int) string {
	if uniseg.StringWidth(colors.ReplaceAllString(line, "")) <= columns {
		return line
	}
	var b strings.Builder
	room := columns - 1 // and one for the ellipsis
	for line != "" {
		if at := colors.FindStringIndex(line); at != nil && at[0] == 0 {
			b.WriteString(line[:at[1]])
			line = line[at[1]:]
			continue
		}
		letter, rest, width, _ := uniseg.FirstGraphemeClusterInString(line, -1)
		line = rest
		if width <= room {
			b.WriteString(letter)
			room -= width
		} else if room >= 0 {
			b.WriteString("…")
			room = -1
		}
	}
	return b.String()
}

// flush prints the rows since the last flush.
func (t *table) flush() error {
	var b strings.Builder
	t.write(&b, t.lineWidth())
	t.rows = t.rows[:0]
	_, err := io.WriteString(t.a.out, b.String())
	return err
}

// lineWidth is the terminal's, or 0 for no limit.
func (t *table) lineWidth() int {
	if !terminal(t.a.stdout) {
		return 0
	}
	columns, _ := t.a.size()
	return columns
}

func (t *table) write(b *strings.Builder, limit int) {
	widths := t.widths(limit)
	if !t.shown {
		var head strings.Builder
		t.line(&head, t.header, widths)
		b.WriteString(t.a.paint(t.a.stdout, bold, strings.TrimSuffix(head.String(), "\n")))
		b.WriteByte('\n')
		t.shown = true
	}
	for _, row := range t.rows {
		t.line(b, row, widths)
	}
}

const gap = 2

// widths are those of the columns; the widest give way while the sum is over
// the limit.
func (t *table) widths(limit int) []int {
	widths := make([]int, len(t.header))
	for _, row := range append([][]string{t.header}, t.rows...) {
		for i, cell := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	sum := gap * (len(widths) - 1)
	for _, w := range widths {
		sum += w
	}
	for limit > 0 && sum > limit {
		widest := 0
		for i, w := range widths {
			if w > widths[widest] {
				widest = i
			}
		}
		if widths[widest] <= 8 {
			break
		}
		widths[widest]--
		sum--
	}
	return widths
}

func (t *table) line(b *strings.Builder, cells []string, widths []int) {
	var line strings.Builder
	for i, cell := range cells {
		n := utf8.RuneCountInString(cell)
		if n > widths[i] {
			cell, n = string([]rune(cell)[:widths[i]-1])+"…", widths[i]
		}
		pad := strings.Repeat(" ", widths[i]-n)
		if t.right[t.header[i]] {
			line.WriteString(pad + cell)
		} else {
			line.WriteString(cell + pad)
		}
		line.WriteString("  ")
	}
	b.WriteString(strings.TrimRight(line.String(), " "))
	b.WriteByte('\n')
}
