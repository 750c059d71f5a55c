package visitor

import (
	_ "embed"
	"errors"
	"fmt"
	"regexp"
	"regexp/syntax"
	"strings"
	"sync"
)

// The list of bots that comes with the program: the patterns of
// crawler-user-agents, see bots.LICENSE.
//
//go:embed bots.txt
var builtinBots []byte

// BotsVersion is the release of crawler-user-agents that the program has.
const BotsVersion = "1.60.0"

// Limits of a list of bots.
const (
	maxBotsBytes = 4 << 20
	maxPatterns  = 20_000
)

// bots are the patterns of user agents of bots. A pattern is looked at only
// where a string is found that it cannot match without.
type bots struct {
	name     string // with its version: the reason of a label
	patterns int
	grams    [1 << 13 / 64]uint64  // bits of the hashes of the keys of byGram
	byGram   map[gram][]botPattern // by the first three bytes of the string
	rest     []*regexp.Regexp      // of those without such a string
	hints    map[string]struct{}   // the lines, to find one that is twice
}

// botPattern is a pattern, and a string that whatever matches it has.
type botPattern struct {
	needs string
	full  *regexp.Regexp // nil: the string is the pattern
}

type gram [3]byte

func (g gram) bit() uint { return (uint(g[0])*31*31 + uint(g[1])*31 + uint(g[2])) & (1<<13 - 1) }

// parseBots reads a list: a regular expression (RE2) per line, which is looked
// for anywhere in a user agent. Empty lines, and those that start with "#", are
// passed over. It fails with every line that cannot be read.
func parseBots(name string, text []byte) (*bots, error) {
	if len(text) > maxBotsBytes {
		return nil, fmt.Errorf("%s: takes %d bytes, and at most %d are allowed", name, len(text), maxBotsBytes)
	}
	b := &bots{name: listName(name, text), byGram: map[gram][]botPattern{}, hints: map[string]struct{}{}}
	var problems []error
	line := 0
	for pattern := range strings.Lines(string(text)) {
		line++
		pattern = strings.TrimRight(pattern, "\r\n")
		if pattern == "" || pattern[0] == '#' {
			continue
		}
		if err := b.add(pattern); err != nil {
			problems = append(problems, fmt.Errorf("%s:%d: %w", name, line, err))
			if len(problems) == maxProblems {
				break
			}
		}
	}
	if problems != nil {
		return nil, errors.Join(problems...)
	}
	if b.patterns == 0 {
		return nil, fmt.Errorf("%s: has no pattern: write one regular expression per line", name)
	}
	b.hints = nil
	return b, nil
}

// maxProblems is how many lines of a file are named that cannot be read.
const maxProblems = 20

func (b *bots) add(pattern string) error {
	if _, twice := b.hints[pattern]; twice {
		return nil
	}
	if b.patterns == maxPatterns {
		return fmt.Errorf("is more than %d patterns", maxPatterns)
	}
	tree, err := syntax.Parse(pattern, syntax.Perl)
	if err != nil {
		if e := (*syntax.Error)(nil); errors.As(err, &e) {
			return fmt.Errorf("%s: %q", e.Code, e.Expr)
		}
		return err
	}
	b.hints[pattern] = struct{}{}
	b.patterns++
	for _, branch := range branches(tree) {
		if matchesEmpty(branch) {
			return fmt.Errorf("%q matches every user agent", pattern)
		}
		if err := b.addBranch(branch); err != nil {
			return err
		}
	}
	return nil
}

// branches are the alternatives of a pattern.
func branches(tree *syntax.Regexp) []*syntax.Regexp {
	if tree.Op == syntax.OpCapture {
		return branches(tree.Sub[0])
	}
	if tree.Op != syntax.OpAlternate {
		return []*syntax.Regexp{tree}
	}
	return tree.Sub
}

// matchesEmpty says whether a pattern matches any text at all.
func matchesEmpty(tree *syntax.Regexp) bool {
	re, err := regexp.Compile(tree.String())
	return err == nil && re.MatchString("") && re.MatchString("\x00")
}

func (b *bots) addBranch(tree *syntax.Regexp) error {
	p := botPattern{needs: longestLiteral(tree)}
	if tree.Op != syntax.OpLiteral || p.needs == "" {
		re, err := regexp.Compile(tree.String())
		if err != nil {
			return err
		}
		p.full = re
	}
	if len(p.needs) < len(gram{}) {
		if p.full == nil {
			p.full = regexp.MustCompile(regexp.QuoteMeta(p.needs))
		}
		b.rest = append(b.rest, p.full)
		return nil
	}
	g := gram([]byte(p.needs[:3]))
	b.byGram[g] = append(b.byGram[g], p)
	b.grams[g.bit()/64] |= 1 << (g.bit() % 64)
	return nil
}

// longestLiteral is a string that whatever matches has, empty if none is known.
func longestLiteral(tree *syntax.Regexp) (longest string) {
	switch tree.Op {
	case syntax.OpLiteral:
		if tree.Flags&syntax.FoldCase == 0 {
			return string(tree.Rune)
		}
	case syntax.OpCapture, syntax.OpPlus:
		return longestLiteral(tree.Sub[0])
	case syntax.OpConcat:
		for _, sub := range tree.Sub {
			if l := longestLiteral(sub); len(l) > len(longest) {
				longest = l
			}
		}
	}
	return longest
}

// match says whether a user agent is that of a bot.
func (b *bots) match(agent string) bool {
	for i := 0; i+3 <= len(agent); i++ {
		g := gram([]byte(agent[i : i+3]))
		if b.grams[g.bit()/64]&(1<<(g.bit()%64)) == 0 {
			continue
		}
		for _, p := range b.byGram[g] {
			if strings.HasPrefix(agent[i:], p.needs) && (p.full == nil || p.full.MatchString(agent)) {
				return true
			}
		}
	}
	for _, re := range b.rest {
		if re.MatchString(agent) {
			return true
		}
	}
	return false
}

var loadBuiltinBots = sync.OnceValue(func() *bots {
	b, err := parseBots("bots.txt", builtinBots)
	if err != nil {
		panic("BUG: " + err.Error())
	}
	b.name = "crawler-user-agents " + BotsVersion
	return b
})
