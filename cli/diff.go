package cli

import (
	"fmt"
	"strings"
)

// unifiedDiff is the difference between two texts, by lines, with three lines
// around each change; "" when there is none.
func unifiedDiff(before, after, beforeName, afterName string) string {
	a, b := lines(before), lines(after)
	edits := diffLines(a, b)
	var out strings.Builder
	for start := 0; start < len(edits); {
		first := start
		for first < len(edits) && edits[first].kind == ' ' {
			first++
		}
		if first == len(edits) {
			break
		}
		const around = 3
		from, last := max(start, first-around), first
		for i := first; i < len(edits) && i-last <= 2*around; i++ {
			if edits[i].kind != ' ' {
				last = i
			}
		}
		to := min(len(edits), last+around+1)
		if out.Len() == 0 {
			fmt.Fprintf(&out, "--- %s\n+++ %s\n", beforeName, afterName)
		}
		writeHunk(&out, edits, from, to)
		start = to
	}
	return out.String()
}

func lines(text string) []string {
	if text == "" {
		return nil
	}
	return strings.Split(strings.TrimSuffix(text, "\n"), "\n")
}

type lineEdit struct {
	kind byte // ' ', '-' or '+'
	text string
}

// writeHunk writes edits[from:to]; the lines before count for its position.
func writeHunk(out *strings.Builder, edits []lineEdit, from, to int) {
	size := func(part []lineEdit) (a, b int) {
		for _, e := range part {
			if e.kind != '+' {
				a++
			}
			if e.kind != '-' {
				b++
			}
		}
		return a, b
	}
	beforeA, beforeB := size(edits[:from])
	sizeA, sizeB := size(edits[from:to])
	position := func(before, n int) string {
		if n > 0 {
			before++
		}
		if n == 1 {
			return fmt.Sprint(before)
		}
		return fmt.Sprintf("%d,%d", before, n)
	}
	fmt.Fprintf(out, "@@ -%s +%s @@\n", position(beforeA, sizeA), position(beforeB, sizeB))
	for _, e := range edits[from:to] {
		out.WriteByte(e.kind)
		out.WriteString(e.text)
		out.WriteByte('\n')
	}
}

// diffLines is a shortest edit from a to b, by the table of longest common
// subsequences: documents are short. Very long ones are replaced as a whole
// between what they start and end with alike.
func diffLines(a, b []string) []lineEdit {
	var edits []lineEdit
	for len(a) > 0 && len(b) > 0 && a[0] == b[0] {
		edits = append(edits, lineEdit{' ', a[0]})
		a, b = a[1:], b[1:]
	}
	var tail []string
	for len(a) > 0 && len(b) > 0 && a[len(a)-1] == b[len(b)-1] {
		tail = append(tail, a[len(a)-1])
		a, b = a[:len(a)-1], b[:len(b)-1]
	}
	const maxTable = 4 << 20
	table := func(int, int) int { return 0 }
	if len(a)*len(b) <= maxTable {
		table = commonLengths(a, b)
	}
	i, j := 0, 0
	for i < len(a) || j < len(b) {
		switch {
		case i < len(a) && j < len(b) && a[i] == b[j]:
			edits = append(edits, lineEdit{' ', a[i]})
			i, j = i+1, j+1
		case i < len(a) && (j == len(b) || table(i+1, j) >= table(i, j+1)):
			edits = append(edits, lineEdit{'-', a[i]})
			i++
		default:
			edits = append(edits, lineEdit{'+', b[j]})
			j++
		}
	}
	for n := len(tail) - 1; n >= 0; n-- {
		edits = append(edits, lineEdit{' ', tail[n]})
	}
	return edits
}

// commonLengths gives the length of the longest common subsequence of a[i:]
// and b[j:].
func commonLengths(a, b []string) func(i, j int) int {
	width := len(b) + 1
	table := make([]int32, (len(a)+1)*width)
	for i := len(a) - 1; i >= 0; i-- {
		for j := len(b) - 1; j >= 0; j-- {
			if a[i] == b[j] {
				table[i*width+j] = table[(i+1)*width+j+1] + 1
			} else {
				table[i*width+j] = max(table[(i+1)*width+j], table[i*width+j+1])
			}
		}
	}
	return func(i, j int) int { return int(table[i*width+j]) }
}
