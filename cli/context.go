package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"github.com/affleet/affleet/cli/internal/document"
	"github.com/affleet/affleet/dataplane/clickstream"
)

const (
	defaultServer = "127.0.0.1:7070"
	defaultNATS   = "nats://127.0.0.1:4222"

	envServer  = "AFFCTL_SERVER"
	envNATS    = "AFFCTL_NATS"
	envContext = "AFFCTL_CONTEXT"
	envConfig  = "AFFCTL_CONFIG"
	envUser    = "AFFCTL_USER"
)

// endpoints are the servers that a command talks to.
type endpoints struct {
	Server string `yaml:"server,omitempty"`
	NATS   string `yaml:"nats,omitempty"`
}

// config is the file that holds the contexts.
type config struct {
	Current  string               `yaml:"current,omitempty"`
	Contexts map[string]endpoints `yaml:"contexts"`
}

// endpoints finds the servers: flag, variable, context, default.
func (a *app) endpoints() (endpoints, error) {
	c, err := a.readConfig()
	if err != nil {
		return endpoints{}, err
	}
	name := first(a.contextName, a.getenv(envContext), c.Current)
	from, ok := c.Contexts[name]
	if name != "" && !ok {
		return endpoints{}, c.noContext(name)
	}
	return endpoints{
		Server: first(a.server, a.getenv(envServer), from.Server, defaultServer),
		NATS:   first(a.nats, a.getenv(envNATS), from.NATS, defaultNATS),
	}, nil
}

func first(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

func (c *config) noContext(name string) error {
	hint := `make it with "affctl context set"`
	if near := document.Nearest(name, slices.Sorted(maps.Keys(c.Contexts))); near != "" {
		hint = fmt.Sprintf("did you mean %q?", near)
	}
	return &failure{code: codeNotFound, message: fmt.Sprintf("there is no context %q", name), hint: hint}
}

// configPath is where the config file is, or would be.
func (a *app) configPath() (string, error) {
	if path := a.getenv(envConfig); path != "" {
		return path, nil
	}
	dir := a.getenv("XDG_CONFIG_HOME")
	if dir == "" {
		home := a.getenv("HOME")
		if home == "" {
			return "", errors.New("no home folder for the config file: set " + envConfig)
		}
		dir = filepath.Join(home, ".config")
	}
	return filepath.Join(dir, "affctl", "config.yaml"), nil
}

// readConfig reads the config file; without one it is empty.
func (a *app) readConfig() (*config, error) {
	c := &config{Contexts: map[string]endpoints{}}
	path, err := a.configPath()
	if err != nil {
		return c, nil //nolint:nilerr // no home folder: no config file
	}
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return c, nil
	}
	if err != nil {
		return nil, err
	}
	decoder := yaml.NewDecoder(strings.NewReader(string(text)))
	decoder.KnownFields(true)
	if err := decoder.Decode(c); err != nil && len(strings.TrimSpace(string(text))) > 0 {
		return nil, &failure{
			code: codeError, message: fmt.Sprintf("%s: %s", path, strings.TrimPrefix(err.Error(), "yaml: ")),
			hint: `it holds "current: NAME" and "contexts: {NAME: {server: HOST:PORT, nats: URL}}"`,
		}
	}
	if c.Contexts == nil {
		c.Contexts = map[string]endpoints{}
	}
	return c, nil
}

// writeConfig replaces the config file.
func (a *app) writeConfig(c *config) error {
	path, err := a.configPath()
	if err != nil {
		return err
	}
	text, err := yaml.Marshal(c)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := createAtomic(path)
	if err != nil {
		return err
	}
	defer f.discard()
	if _, err := f.Write(text); err != nil {
		return err
	}
	return f.commit()
}

func newContext(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "context",
		Short: "Remember the addresses of several fleets",
		Long: `Remember the addresses of several fleets, in $AFFCTL_CONFIG or
~/.config/affctl/config.yaml.`,
		Example: `  affctl context set prod --server control.example.com:7070
  affctl context use prod
  affctl --context staging link list`,
		Args: cobra.ArbitraryArgs,
		RunE: group,
	}
	cmd.AddCommand(contextList(a), contextUse(a), contextSet(a), contextDelete(a))
	return cmd
}

func contextList(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "Show the contexts", Example: "  affctl context list", Args: argCount(0, 0),
		RunE: func(*cobra.Command, []string) error {
			c, err := a.readConfig()
			if err != nil {
				return err
			}
			if len(c.Contexts) == 0 {
				a.notef(`no contexts: make one with "affctl context set NAME --server HOST:PORT"`)
				return nil
			}
			current := first(a.contextName, a.getenv(envContext), c.Current)
			t := a.table("CURRENT", "NAME", "SERVER", "NATS")
			for _, name := range slices.Sorted(maps.Keys(c.Contexts)) {
				mark := ""
				if name == current {
					mark = "*"
				}
				t.row(mark, name, c.Contexts[name].Server, clickstream.RedactURLs(c.Contexts[name].NATS))
			}
			return t.flush()
		},
	}
}

func contextUse(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "use NAME", Short: "Make a context the one that is used", Example: "  affctl context use prod", Args: argCount(1, 1),
		RunE: func(_ *cobra.Command, args []string) error {
			c, err := a.readConfig()
			if err != nil {
				return err
			}
			if _, ok := c.Contexts[args[0]]; !ok {
				return c.noContext(args[0])
			}
			c.Current = args[0]
			if err := a.writeConfig(c); err != nil {
				return err
			}
			a.printf("using context %s (%s)\n", args[0], first(c.Contexts[args[0]].Server, defaultServer))
			return nil
		},
	}
}

func contextSet(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "set NAME [--server HOST:PORT] [--nats URL]", Short: "Make or change a context",
		Long:    "Make or change a context. The first one becomes the one that is used.",
		Example: "  affctl context set prod --server control.example.com:7070 \\\n    --nats nats://nats.example.com:4222",
		Args:    argCount(1, 1), DisableFlagsInUseLine: true,
		RunE: func(_ *cobra.Command, args []string) error {
			if a.server == "" && a.nats == "" {
				return usagef("", "nothing to set: give --server or --nats")
			}
			if a.server != "" {
				if err := checkServer(a.server); err != nil {
					return err
				}
			}
			if err := clickstream.ValidateURLs(a.nats); err != nil {
				return usagef("it looks like nats://USER:PASSWORD@HOST:PORT", "--nats %s", err)
			}
			c, err := a.readConfig()
			if err != nil {
				return err
			}
			entry := c.Contexts[args[0]]
			entry.Server, entry.NATS = first(a.server, entry.Server), first(a.nats, entry.NATS)
			c.Contexts[args[0]] = entry
			if len(c.Contexts) == 1 {
				c.Current = args[0]
			}
			if err := a.writeConfig(c); err != nil {
				return err
			}
			a.printf("context %s is set\n", args[0])
			return nil
		},
	}
}

func contextDelete(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "delete NAME", Short: "Forget a context", Example: "  affctl context delete staging", Args: argCount(1, 1),
		RunE: func(_ *cobra.Command, args []string) error {
			c, err := a.readConfig()
			if err != nil {
				return err
			}
			if _, ok := c.Contexts[args[0]]; !ok {
				return c.noContext(args[0])
			}
			delete(c.Contexts, args[0])
			if c.Current == args[0] {
				c.Current = ""
			}
			if err := a.writeConfig(c); err != nil {
				return err
			}
			a.printf("context %s is deleted\n", args[0])
			return nil
		},
	}
}
