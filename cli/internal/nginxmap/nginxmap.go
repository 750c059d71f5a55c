// Package nginxmap reads the redirects that an nginx map block holds, so that
// they can be imported as links: from a whole configuration, from a file with
// a map block, or from a bare fragment that is meant to be included in one.
//
// It reads what nginx 1.22 reads, in the way nginx reads it: quotes, escapes,
// includes, hostnames, keys that match in any case. What a link cannot do, or
// does in another way, becomes a Note with file and line; nothing is left out
// silently. It is not a general reader or checker of nginx configurations:
// directives that have nothing to do with maps and redirects are passed over.
//
// Parse may be called by several goroutines at once as long as their Options
// allow it; a Result belongs to its caller.
package nginxmap

// Options say which map to read, and how. The zero value reads the only map of
// a file whose keys have a host.
type Options struct {
	// MapName is the variable that the map sets, "$target". Empty: the only
	// map there is; several are an error that lists them.
	MapName string
	// Domain is the host of the keys that have none. Required as soon as there
	// is such a key.
	Domain string
	// Base is the absolute http or https URL that targets without a host are
	// resolved against. Empty: what the configuration itself puts before the
	// target (return 301 https://example.com$target), and else such a target
	// is an Error note.
	Base string
	// None are the values, in any case, that mean "no redirect" as the empty
	// one does. Nil: DefaultNone. What the configuration itself compares the
	// target with (if ($target != "none")) is always one of them.
	None []string
	// Read gives the bytes of a file and leaves them alone afterwards: the
	// strings of the Result point into them. Nil: os.ReadFile.
	Read func(path string) ([]byte, error)
	// Glob gives the files that match the pattern of an include, sorted. Nil:
	// filepath.Glob, without hidden files, as nginx has it.
	Glob func(pattern string) ([]string, error)
}

// DefaultNone are the values besides the empty one that people write for "no
// redirect": what nginx's if takes for false, and what they compare with.
var DefaultNone = []string{"none", "-", "0", "off", "no", "false", "null"}

// Entry is one redirect.
type Entry struct {
	// Host is in its key form, "*" for every host.
	Host string
	// Path is in its key form. It is empty for an entry of a map on the host
	// alone: the destination of every path of Host.
	Path string
	// Destination is an absolute URL that link.CheckDestination accepts.
	Destination string
	// File and Line, from 1, are where it comes from.
	File string
	Line int
}

// Severity says what a Note means for the import.
type Severity uint8

const (
	// Warning is for what is carried over with a change.
	Warning Severity = iota + 1
	// Error is for what cannot be carried over.
	Error
)

// String gives "warning" or "error".
func (s Severity) String() string {
	if s == Error {
		return "error"
	}
	return "warning"
}

// Note is something that a person should know about one line.
type Note struct {
	File     string
	Line     int // from 1
	Severity Severity
	Text     string // lower case, one line
	Hint     string // the cure, where it is known
}

// Result is a map as links. nginx finds its keys in any case: the links are the
// same only where their domain ignores case, which is for the caller to see to.
type Result struct {
	// Map is the variable that the map sets, "$target"; for a bare fragment
	// what Options say.
	Map string
	// Source is what the map looks at: "$uri", "$request_uri", "$host$uri",
	// "$host$request_uri", "$http_host$uri", "$http_host$request_uri", "$host"
	// or "$http_host". Empty for a bare fragment, where each key tells: "/a"
	// is a path, "example.com/a" a host and a path, "example.com" a host.
	Source string
	// Entries are in the order of the file. No two have the same host and
	// path, not even in another case: of those the first is here, as nginx
	// would refuse the second.
	Entries []Entry
	// Default is the absolute URL for whatever matches no key, if HasDefault.
	Default    string
	HasDefault bool
	// DefaultHost is the domain that Default is for: Options.Domain, and "*"
	// where that is empty, as it may be for a map with hosts in its keys.
	DefaultHost string
	// DefaultFile and DefaultLine are where Default comes from.
	DefaultFile string
	DefaultLine int
	// StatusCode is that of the return or rewrite that uses the map: 301, 302,
	// 303, 307 or 308. 302 if there is none to be seen.
	StatusCode int
	// Notes are in the order in which they were found.
	Notes []Note
}

// Parse reads the map that opts name from the nginx configuration or fragment
// at path, and the files that it includes. It gives an error, always a
// *link.Error with file and line in its message, for what nginx would not load
// at all, for a file that cannot be read, and for a map that cannot be chosen
// or has a source that no link has. All else is a Note in the Result.
func Parse(path string, opts Options) (*Result, error) {
	p, err := newParser(path, opts)
	if err != nil {
		return nil, err
	}
	main, err := p.files.load(path)
	if err != nil {
		return nil, unreadable(path, err)
	}
	if err := p.survey(main); err != nil {
		return nil, err
	}
	if p.blocks == 0 {
		p.notes = nil
		p.result.Map = variable(opts.MapName)
		return p.finish(p.readFragment(main))
	}
	m, err := p.choose(path, opts.MapName)
	if err != nil {
		return nil, err
	}
	return p.finish(p.readMap(m))
}
