package link

import (
	"errors"
	"runtime"
	"slices"
	"strings"
	"sync"
	"weak"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/cost"
	"cel.dev/cel-go/ext"
)

// Limits of the rules of a link.
const (
	MaxExpression = 2048   // of the condition of a rule, in bytes
	MaxRules      = 64     // rules of a link
	MaxRulesCost  = 50_000 // what the conditions of a link may cost together at worst, in the units of CEL
)

// program is the condition of a rule, ready to be evaluated by any number of
// goroutines. There is one for each text: whoever asks for a text that somebody
// holds gets the same.
type program struct {
	text  string
	cost  uint64   // at worst
	names []string // of the variables that it reads, in the order of the text
	fast  boolExpr // nil: CEL's own evaluator has to do it
	slow  cel.Program
}

// answer is what evaluating a condition gives.
type answer uint8

const (
	no answer = iota
	yes
	failed // a key is missing, say
)

func (p *program) eval(f *facts) answer {
	if p.fast != nil {
		return p.fast(f)
	}
	a, _ := p.evalSlowly(f)
	return a
}

// variables are the names that rules know, with the largest size that a value
// has for the estimate of costs.
var variables = []struct {
	name string
	kind *cel.Type
	size uint64 // bytes, or entries
}{
	{"country", cel.StringType, 2},
	{"region", cel.StringType, 8},
	{"city", cel.StringType, 128},
	{"asn", cel.IntType, 1},
	{"device", cel.StringType, 16},
	{"os", cel.StringType, 16},
	{"browser", cel.StringType, 16},
	{"language", cel.StringType, 16},
	{"languages", cel.ListType(cel.StringType), MaxLanguages},
	{"referrer_domain", cel.StringType, MaxHost},
	{"query", cel.MapType(cel.StringType, cel.StringType), MaxQuery},
	{"host", cel.StringType, MaxHost},
	{"path", cel.StringType, MaxPath},
	{"ip", cel.StringType, 46},
	{"bot", cel.BoolType, 1},
	{"labels", cel.MapType(cel.StringType, cel.StringType), MaxLabels},
	{"now", cel.TimestampType, 1},
}

// elements are the largest sizes of what the collections hold.
var elements = map[string]uint64{
	"languages/@items": 16, "query/@keys": 256, "query/@values": 1024, "labels/@keys": MaxLabelKey, "labels/@values": MaxText,
}

// environment is the language of rules: CEL's standard, with its library for
// networks.
var environment = sync.OnceValue(func() *cel.Env {
	options := []cel.EnvOption{
		ext.Network(),
		cel.ParserExpressionSizeLimit(MaxExpression),
		cel.ParserRecursionLimit(64),
	}
	for _, v := range variables {
		options = append(options, cel.Variable(v.name, v.kind))
	}
	env, err := cel.NewEnv(options...)
	if err != nil {
		panic("BUG: the language of rules: " + err.Error())
	}
	return env
})

// sizes tells the estimate of costs how large values can be.
type sizes struct{}

func (sizes) EstimateSize(e cost.AstNode) *cost.SizeEstimate {
	path := e.Path()
	if len(path) == 0 {
		return nil
	}
	for _, v := range variables {
		if path[0] == v.name && len(path) == 1 {
			return &cost.SizeEstimate{Max: v.size}
		}
	}
	if n, ok := elements[strings.Join(path, "/")]; ok {
		return &cost.SizeEstimate{Max: n}
	}
	if path[0] == "query" || path[0] == "labels" {
		return &cost.SizeEstimate{Max: elements[path[0]+"/@values"]}
	}
	return nil
}

func (sizes) EstimateCallCost(string, string, *cost.AstNode, []cost.AstNode) *cost.CallEstimate {
	return nil
}

const ruleHint = `a rule looks like country == "DE" && device == "mobile"`

// programs holds those that are in use, by their text, without keeping them.
var programs struct {
	sync.RWMutex
	byText map[string]weak.Pointer[program]
}

// programOf gives the program of a text.
func programOf(text string) (*program, *Error) {
	programs.RLock()
	p := programs.byText[text].Value()
	programs.RUnlock()
	if p != nil {
		return p, nil
	}
	text = strings.Clone(text)
	made, err := compileRule(text)
	if err != nil {
		return nil, err
	}
	programs.Lock()
	defer programs.Unlock()
	if p := programs.byText[text].Value(); p != nil {
		return p, nil
	}
	if programs.byText == nil {
		programs.byText = map[string]weak.Pointer[program]{}
	}
	programs.byText[text] = weak.Make(made)
	runtime.AddCleanup(made, forgetProgram, text)
	return made, nil
}

// forgetProgram drops the entry of a program that is no more, unless the text
// has a new one.
func forgetProgram(text string) {
	programs.Lock()
	defer programs.Unlock()
	if programs.byText[text].Value() == nil {
		delete(programs.byText, text)
	}
}

// compileRule checks a condition as CEL does, estimates its costs, and makes it
// ready.
func compileRule(text string) (*program, *Error) {
	env := environment()
	checked, issues := env.Compile(text)
	if issues.Err() != nil {
		return nil, ruleIssue(issues)
	}
	if !checked.OutputType().IsExactType(cel.BoolType) {
		return nil, invalid("when", "compare it with something: "+ruleHint, "gives a %s, and must give a bool", checked.OutputType())
	}
	estimate, err := env.EstimateCost(checked, sizes{})
	if err != nil {
		return nil, invalid("when", "", "cannot be estimated: %v", err)
	}
	if estimate.Max > MaxRulesCost {
		return nil, invalid("when", "use fewer loops, and shorter lists and patterns",
			"may cost %s units, and at most %d are allowed", units(estimate.Max), MaxRulesCost)
	}
	p := &program{text: text, cost: estimate.Max}
	tree := checked.NativeRep()
	zoned, err := p.inspect(tree)
	if err != nil {
		return nil, invalid("when", "write the time zone as a literal: \"Europe/Berlin\"", "%v", err)
	}
	if p.fast = compileFast(tree); p.fast == nil {
		if zoned {
			return nil, invalid("when", "write the zone as an offset, +02:00, or make it several rules",
				"has a named time zone beside what is not a plain comparison")
		}
		if p.slow, err = env.Program(checked, cel.EvalOptions(cel.OptOptimize)); err != nil {
			return nil, invalid("when", "", "%v", err)
		}
	}
	return p, nil
}

// ruleIssue makes one error of what CEL says about a text.
func ruleIssue(issues *cel.Issues) *Error {
	first := issues.Errors()[0]
	message := first.Message
	if i := strings.IndexByte(message, '\n'); i >= 0 {
		message = message[:i]
	}
	hint := ruleHint
	if name, ok := strings.CutPrefix(message, "undeclared reference to '"); ok {
		name, _, _ = strings.Cut(name, "'")
		hint = "did you mean " + nearest(name, variableNames()) + "?"
	}
	return invalid("when", hint, "column %d: %s", first.Location.Column()+1, message)
}

func variableNames() (names []string) {
	for _, v := range variables {
		names = append(names, v.name)
	}
	return names
}

var errZone = errors.New("has a time zone that is not a literal, or that is none")

// inspect notes the variables that an expression reads, and says whether it has
// a time zone that is a name: looking one up means reading files, which is done
// once, when the rule is compiled, and never for a request. It fails if a zone is
// not a literal that there is.
func (p *program) inspect(tree *ast.AST) (zoned bool, err error) {
	known := variableNames()
	ast.PostOrderVisit(tree.Expr(), ast.NewExprVisitor(func(e ast.Expr) {
		switch e.Kind() {
		case ast.IdentKind:
			if name := e.AsIdent(); slices.Contains(known, name) && !slices.Contains(p.names, name) {
				p.names = append(p.names, name)
			}
		case ast.CallKind:
			if args := e.AsCall().Args(); len(args) == 1 && timeParts[e.AsCall().FunctionName()] {
				if _, ok := zoneOf(args[0]); !ok {
					err = errZone
					return
				}
				text, _ := literalText(args[0])
				zoned = zoned || !strings.Contains(text, ":")
			}
		}
	}))
	return zoned, err
}
