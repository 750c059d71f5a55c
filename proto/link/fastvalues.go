package link

import (
	"math"
	"strconv"
	"strings"
	"time"
	_ "time/tzdata" // a rule means the same on every machine
	"unicode/utf8"

	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/overloads"
	"cel.dev/cel-go/common/types"
)

func (c compiler) text(e ast.Expr) textExpr {
	switch e.Kind() {
	case ast.LiteralKind:
		if s, ok := literalText(e); ok {
			return constantText(s)
		}
	case ast.IdentKind:
		if get, ok := stringFacts[e.AsIdent()]; ok {
			return func(f *facts) (string, bool) { return get(f), true }
		}
	case ast.SelectKind:
		if s := e.AsSelect(); !s.IsTestOnly() {
			return value(s.Operand(), constantText(s.FieldName()))
		}
	case ast.CallKind:
		args := e.AsCall().Args()
		switch e.AsCall().FunctionName() {
		case operators.Index:
			if args[0].Kind() == ast.IdentKind && args[0].AsIdent() == "languages" {
				return c.languageAt(args[1])
			}
			return value(args[0], c.text(args[1]))
		case operators.Conditional:
			return c.conditionalText(args)
		}
	}
	return nil
}

// value is what a map has under a key.
func value(operand ast.Expr, key textExpr) textExpr {
	find := lookup(operand)
	if find == nil || key == nil {
		return nil
	}
	return func(f *facts) (string, bool) {
		k, ok := key(f)
		if !ok {
			return "", false
		}
		return find(f, k)
	}
}

func (c compiler) languageAt(index ast.Expr) textExpr {
	at := c.int(index)
	if at == nil || c.tree.GetType(index.ID()).Kind() != types.IntKind {
		return nil
	}
	return func(f *facts) (string, bool) {
		i, ok := at(f)
		if tags := f.languages(); ok && i >= 0 && i < int64(len(tags)) {
			return tags[i], true
		}
		return "", false
	}
}

func (c compiler) conditionalText(args []ast.Expr) textExpr {
	when, then, other := c.bool(args[0]), c.text(args[1]), c.text(args[2])
	if when == nil || then == nil || other == nil {
		return nil
	}
	return func(f *facts) (string, bool) {
		switch when(f) {
		case yes:
			return then(f)
		case no:
			return other(f)
		}
		return "", false
	}
}

func (c compiler) int(e ast.Expr) intExpr {
	switch e.Kind() {
	case ast.LiteralKind:
		if n, ok := e.AsLiteral().(types.Int); ok {
			return func(*facts) (int64, bool) { return int64(n), true }
		}
	case ast.IdentKind:
		switch e.AsIdent() {
		case "asn":
			return func(f *facts) (int64, bool) { return int64(f.where().ASN), true }
		case "now":
			return func(f *facts) (int64, bool) { return f.req.UnixMicro, true }
		}
	case ast.CallKind:
		return c.intCall(e)
	}
	return nil
}

func (c compiler) intCall(e ast.Expr) intExpr {
	call := e.AsCall()
	overload := c.tree.GetOverloadIDs(e.ID())
	if len(overload) != 1 {
		return nil
	}
	if compute, ok := arithmetic[overload[0]]; ok {
		return c.compute(call.Args(), compute)
	}
	switch overload[0] {
	case overloads.StringToTimestamp:
		return literalTime(call.Args()[0])
	case overloads.SizeString, overloads.SizeList:
		return c.size(call.Args()[0])
	case overloads.SizeStringInst, overloads.SizeListInst:
		return c.size(call.Target())
	}
	part := partOfTime[overload[0]]
	if part == nil || call.Target().Kind() != ast.IdentKind || call.Target().AsIdent() != "now" {
		return nil
	}
	zone := time.UTC
	if args := call.Args(); len(args) == 1 {
		zone, _ = zoneOf(args[0])
	}
	return func(f *facts) (int64, bool) { return int64(part(time.UnixMicro(f.req.UnixMicro).In(zone))), true }
}

// arithmetic is that of ints, which fails where they end.
var arithmetic = map[string]func(x, y int64) (int64, bool){
	overloads.AddInt64:      func(x, y int64) (int64, bool) { return x + y, (x+y > x) == (y > 0) },
	overloads.SubtractInt64: func(x, y int64) (int64, bool) { return x - y, (x-y < x) == (y > 0) },
	overloads.MultiplyInt64: func(x, y int64) (int64, bool) {
		if x == 0 || y == 0 {
			return 0, true
		}
		z := x * y
		return z, z/y == x && (x != -1 || y != math.MinInt64) && (y != -1 || x != math.MinInt64)
	},
	overloads.DivideInt64: func(x, y int64) (int64, bool) {
		if y == 0 || x == math.MinInt64 && y == -1 {
			return 0, false
		}
		return x / y, true
	},
	overloads.ModuloInt64: func(x, y int64) (int64, bool) {
		if y == 0 || x == math.MinInt64 && y == -1 {
			return 0, false
		}
		return x % y, true
	},
}

func (c compiler) compute(args []ast.Expr, compute func(x, y int64) (int64, bool)) intExpr {
	a, b := c.int(args[0]), c.int(args[1])
	if a == nil || b == nil {
		return nil
	}
	return func(f *facts) (int64, bool) {
		x, ok := a(f)
		if !ok {
			return 0, false
		}
		y, ok := b(f)
		if !ok {
			return 0, false
		}
		return compute(x, y)
	}
}

// size is how many characters a string has, or entries a list.
func (c compiler) size(e ast.Expr) intExpr {
	if e.Kind() == ast.IdentKind && e.AsIdent() == "languages" {
		return func(f *facts) (int64, bool) { return int64(len(f.languages())), true }
	}
	a := c.text(e)
	if a == nil {
		return nil
	}
	return func(f *facts) (int64, bool) {
		x, ok := a(f)
		return int64(utf8.RuneCountInString(x)), ok
	}
}

// literalTime is timestamp("...") of a literal with whole µs.
func literalTime(e ast.Expr) intExpr {
	text, ok := literalText(e)
	if !ok {
		return nil
	}
	t, err := time.Parse(time.RFC3339, text)
	if err != nil || t.Nanosecond()%1000 != 0 || t.Year() < 1 || t.Year() > 9999 {
		return nil
	}
	at := t.UnixMicro()
	return func(*facts) (int64, bool) { return at, true }
}

// timeParts are the functions that take a time zone.
var timeParts = map[string]bool{
	overloads.TimeGetFullYear: true, overloads.TimeGetMonth: true, overloads.TimeGetDayOfYear: true, overloads.TimeGetDate: true,
	overloads.TimeGetDayOfMonth: true, overloads.TimeGetDayOfWeek: true, overloads.TimeGetHours: true,
	overloads.TimeGetMinutes: true, overloads.TimeGetSeconds: true, overloads.TimeGetMilliseconds: true,
}

// partOfTime gives what a function on timestamps reads, without and with a zone.
var partOfTime = map[string]func(time.Time) int{}

func init() {
	for _, p := range []struct {
		plain, zoned string
		read         func(time.Time) int
	}{
		{overloads.TimestampToYear, overloads.TimestampToYearWithTz, time.Time.Year},
		{overloads.TimestampToMonth, overloads.TimestampToMonthWithTz, func(t time.Time) int { return int(t.Month()) - 1 }},
		{overloads.TimestampToDayOfYear, overloads.TimestampToDayOfYearWithTz, func(t time.Time) int { return t.YearDay() - 1 }},
		{overloads.TimestampToDayOfMonthZeroBased, overloads.TimestampToDayOfMonthZeroBasedWithTz, func(t time.Time) int { return t.Day() - 1 }},
		{overloads.TimestampToDayOfMonthOneBased, overloads.TimestampToDayOfMonthOneBasedWithTz, time.Time.Day},
		{overloads.TimestampToDayOfWeek, overloads.TimestampToDayOfWeekWithTz, func(t time.Time) int { return int(t.Weekday()) }},
		{overloads.TimestampToHours, overloads.TimestampToHoursWithTz, time.Time.Hour},
		{overloads.TimestampToMinutes, overloads.TimestampToMinutesWithTz, time.Time.Minute},
		{overloads.TimestampToSeconds, overloads.TimestampToSecondsWithTz, time.Time.Second},
		{overloads.TimestampToMilliseconds, overloads.TimestampToMillisecondsWithTz, func(t time.Time) int { return t.Nanosecond() / 1e6 }},
	} {
		partOfTime[p.plain], partOfTime[p.zoned] = p.read, p.read
	}
}

// zoneOf reads a literal time zone as CEL does: a name, or "+02:00".
func zoneOf(e ast.Expr) (*time.Location, bool) {
	text, ok := literalText(e)
	if !ok {
		return nil, false
	}
	hours, minutes, ok := strings.Cut(text, ":")
	if !ok {
		zone, err := time.LoadLocation(text)
		return zone, err == nil && text != "Local"
	}
	h, err1 := strconv.Atoi(hours)
	m, err2 := strconv.Atoi(minutes)
	if err1 != nil || err2 != nil || h < -23 || h > 23 || m < 0 || m > 59 {
		return nil, false
	}
	if strings.HasPrefix(hours, "-") {
		m = -m
	}
	return time.FixedZone("", h*3600+m*60), true
}
