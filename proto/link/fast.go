package link

import (
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/overloads"
	"cel.dev/cel-go/common/types"
)

// Most rules are comparisons of facts with literals. Those are compiled to
// closures, which do not allocate: a boolExpr, textExpr or intExpr for each
// expression, by its type. A timestamp is an int, in µs since 1970. What is not
// of the subset here is nil, and the whole rule is left to CEL's evaluator.
type (
	boolExpr func(*facts) answer
	textExpr func(*facts) (string, bool) // false: it failed
	intExpr  func(*facts) (int64, bool)  // likewise
)

// compiler compiles expressions that CEL has checked.
type compiler struct{ tree *ast.AST }

// compileFast gives nil if the expression is not of the subset.
func compileFast(tree *ast.AST) boolExpr { return compiler{tree}.bool(tree.Expr()) }

func (c compiler) bool(e ast.Expr) boolExpr {
	switch e.Kind() {
	case ast.LiteralKind:
		if b, ok := e.AsLiteral().(types.Bool); ok {
			return constant(truth(bool(b)))
		}
	case ast.IdentKind:
		if e.AsIdent() == "bot" {
			return func(f *facts) answer { return truth(f.who().Bot) }
		}
	case ast.SelectKind:
		if s := e.AsSelect(); s.IsTestOnly() {
			return c.hasKey(s.Operand(), constantText(s.FieldName()))
		}
	case ast.CallKind:
		return c.boolCall(e)
	}
	return nil
}

func constant(a answer) boolExpr { return func(*facts) answer { return a } }

func truth(b bool) answer {
	if b {
		return yes
	}
	return no
}

func (c compiler) boolCall(e ast.Expr) boolExpr {
	call := e.AsCall()
	args := call.Args()
	switch call.FunctionName() {
	case operators.LogicalAnd:
		return c.logical(args, no)
	case operators.LogicalOr:
		return c.logical(args, yes)
	case operators.LogicalNot:
		return not(c.bool(args[0]))
	case operators.Conditional:
		return c.conditional(args)
	case operators.Equals:
		return c.equal(args[0], args[1])
	case operators.NotEquals:
		return not(c.equal(args[0], args[1]))
	case operators.Less, operators.LessEquals, operators.Greater, operators.GreaterEquals:
		return c.order(call.FunctionName(), args[0], args[1])
	case operators.In:
		return c.in(args[0], args[1])
	}
	overload := c.tree.GetOverloadIDs(e.ID())
	if len(overload) != 1 {
		return nil
	}
	switch overload[0] {
	case overloads.ContainsString:
		return c.texts(call.Target(), args[0], strings.Contains)
	case overloads.StartsWithString:
		return c.texts(call.Target(), args[0], strings.HasPrefix)
	case overloads.EndsWithString:
		return c.texts(call.Target(), args[0], strings.HasSuffix)
	case overloads.MatchesString:
		return c.matches(call, args)
	case "cidr_contains_ip_string":
		return c.containsIP(call.Target(), args[0])
	}
	return nil
}

// logical is && or ||: one operand that is decisive decides, whatever the
// others are.
func (c compiler) logical(args []ast.Expr, decisive answer) boolExpr {
	left := c.bool(args[0])
	for _, arg := range args[1:] {
		a, b := left, c.bool(arg)
		if a == nil || b == nil {
			return nil
		}
		left = func(f *facts) answer {
			x := a(f)
			if x == decisive {
				return x
			}
			y := b(f)
			if y == decisive || x != failed {
				return y
			}
			return failed
		}
	}
	return left
}

func not(a boolExpr) boolExpr {
	if a == nil {
		return nil
	}
	return func(f *facts) answer {
		switch a(f) {
		case no:
			return yes
		case yes:
			return no
		}
		return failed
	}
}

func (c compiler) conditional(args []ast.Expr) boolExpr {
	when, then, other := c.bool(args[0]), c.bool(args[1]), c.bool(args[2])
	if when == nil || then == nil || other == nil {
		return nil
	}
	return func(f *facts) answer {
		switch when(f) {
		case yes:
			return then(f)
		case no:
			return other(f)
		}
		return failed
	}
}

// equal compares what has the same type.
func (c compiler) equal(left, right ast.Expr) boolExpr {
	if a, b := c.text(left), c.text(right); a != nil && b != nil {
		if right.Kind() == ast.LiteralKind {
			s := string(right.AsLiteral().(types.String))
			return func(f *facts) answer {
				x, ok := a(f)
				if !ok {
					return failed
				}
				return truth(x == s)
			}
		}
		return func(f *facts) answer { return both(f, a, b, func(x, y string) bool { return x == y }) }
	}
	if !c.sameNumbers(left, right) {
		return c.equalBools(left, right)
	}
	return c.numbers(left, right, func(x, y int64) bool { return x == y })
}

func (c compiler) equalBools(left, right ast.Expr) boolExpr {
	a, b := c.bool(left), c.bool(right)
	if a == nil || b == nil {
		return nil
	}
	return func(f *facts) answer {
		x, y := a(f), b(f)
		if x == failed || y == failed {
			return failed
		}
		return truth(x == y)
	}
}

// both compares two strings.
func both(f *facts, a, b textExpr, compare func(x, y string) bool) answer {
	x, ok := a(f)
	if !ok {
		return failed
	}
	y, ok := b(f)
	if !ok {
		return failed
	}
	return truth(compare(x, y))
}

// order compares strings, ints or timestamps.
func (c compiler) order(operator string, left, right ast.Expr) boolExpr {
	switch operator {
	case operators.Greater:
		left, right, operator = right, left, operators.Less
	case operators.GreaterEquals:
		left, right, operator = right, left, operators.LessEquals
	}
	equal := operator == operators.LessEquals
	if c.text(left) != nil && c.text(right) != nil {
		if equal {
			return c.texts(left, right, func(x, y string) bool { return x <= y })
		}
		return c.texts(left, right, func(x, y string) bool { return x < y })
	}
	if !c.sameNumbers(left, right) {
		return nil
	}
	if equal {
		return c.numbers(left, right, func(x, y int64) bool { return x <= y })
	}
	return c.numbers(left, right, func(x, y int64) bool { return x < y })
}

// sameNumbers says that both are ints, or both timestamps.
func (c compiler) sameNumbers(left, right ast.Expr) bool {
	kind := c.tree.GetType(left.ID()).Kind()
	return kind == c.tree.GetType(right.ID()).Kind() && (kind == types.IntKind || kind == types.TimestampKind)
}

func (c compiler) numbers(left, right ast.Expr, compare func(x, y int64) bool) boolExpr {
	a, b := c.int(left), c.int(right)
	if a == nil || b == nil {
		return nil
	}
	return func(f *facts) answer {
		x, ok := a(f)
		if !ok {
			return failed
		}
		y, ok := b(f)
		if !ok {
			return failed
		}
		return truth(compare(x, y))
	}
}

func (c compiler) texts(left, right ast.Expr, compare func(x, y string) bool) boolExpr {
	a, b := c.text(left), c.text(right)
	if a == nil || b == nil {
		return nil
	}
	return func(f *facts) answer { return both(f, a, b, compare) }
}

func (c compiler) matches(call ast.CallExpr, args []ast.Expr) boolExpr {
	subject := call.Target()
	if !call.IsMemberFunction() {
		subject, args = args[0], args[1:]
	}
	a := c.text(subject)
	if a == nil || args[0].Kind() != ast.LiteralKind {
		return nil
	}
	re, err := regexp.Compile(string(args[0].AsLiteral().(types.String)))
	if err != nil {
		return nil
	}
	return func(f *facts) answer {
		x, ok := a(f)
		if !ok {
			return failed
		}
		return truth(re.MatchString(x))
	}
}

// containsIP is cidr("...").containsIP(ip) of literals.
func (c compiler) containsIP(target, arg ast.Expr) boolExpr {
	if target.Kind() != ast.CallKind || target.AsCall().FunctionName() != "cidr" || len(target.AsCall().Args()) != 1 {
		return nil
	}
	text, ok := literalText(target.AsCall().Args()[0])
	if !ok || arg.Kind() != ast.IdentKind || arg.AsIdent() != "ip" {
		return nil
	}
	prefix, err := netip.ParsePrefix(text)
	if err != nil {
		return nil
	}
	return func(f *facts) answer {
		a := f.addr()
		if !a.IsValid() {
			return failed
		}
		return truth(prefix.Contains(a))
	}
}

// in looks for a string or an int in a list of literals, for a language, or for
// a key.
func (c compiler) in(left, right ast.Expr) boolExpr {
	if right.Kind() == ast.IdentKind {
		a := c.text(left)
		if a == nil {
			return nil
		}
		if right.AsIdent() == "languages" {
			return func(f *facts) answer {
				x, ok := a(f)
				if !ok {
					return failed
				}
				return truth(slices.Contains(f.languages(), x))
			}
		}
		return c.hasKey(right, a)
	}
	if right.Kind() != ast.ListKind || len(right.AsList().OptionalIndices()) > 0 {
		return nil
	}
	if a := c.text(left); a != nil {
		return inTexts(a, right.AsList().Elements())
	}
	return c.inNumbers(left, right.AsList().Elements())
}

// manyTexts is from how many literals on a map finds one faster.
const manyTexts = 12

func inTexts(a textExpr, elements []ast.Expr) boolExpr {
	list, set := make([]string, len(elements)), map[string]bool{}
	for i, e := range elements {
		var ok bool
		if list[i], ok = literalText(e); !ok {
			return nil
		}
		set[list[i]] = true
	}
	if len(list) >= manyTexts {
		return func(f *facts) answer {
			x, ok := a(f)
			if !ok {
				return failed
			}
			return truth(set[x])
		}
	}
	return func(f *facts) answer {
		x, ok := a(f)
		if !ok {
			return failed
		}
		return truth(slices.Contains(list, x))
	}
}

func (c compiler) inNumbers(left ast.Expr, elements []ast.Expr) boolExpr {
	a := c.int(left)
	if a == nil || c.tree.GetType(left.ID()).Kind() != types.IntKind {
		return nil
	}
	set := make(map[int64]bool, len(elements))
	for _, e := range elements {
		if e.Kind() != ast.LiteralKind {
			return nil
		}
		n, ok := e.AsLiteral().(types.Int)
		if !ok {
			return nil
		}
		set[int64(n)] = true
	}
	return func(f *facts) answer {
		x, ok := a(f)
		if !ok {
			return failed
		}
		return truth(set[x])
	}
}

// lookup gives how a value of a map is found.
func lookup(e ast.Expr) func(*facts, string) (string, bool) {
	if e.Kind() == ast.IdentKind {
		switch e.AsIdent() {
		case "query":
			return (*facts).query
		case "labels":
			return (*facts).label
		}
	}
	return nil
}

func (c compiler) hasKey(operand ast.Expr, key textExpr) boolExpr {
	find := lookup(operand)
	if find == nil || key == nil {
		return nil
	}
	return func(f *facts) answer {
		k, ok := key(f)
		if !ok {
			return failed
		}
		_, ok = find(f, k)
		return truth(ok)
	}
}

func literalText(e ast.Expr) (string, bool) {
	if e.Kind() != ast.LiteralKind {
		return "", false
	}
	s, ok := e.AsLiteral().(types.String)
	return string(s), ok
}

func constantText(s string) textExpr { return func(*facts) (string, bool) { return s, true } }
