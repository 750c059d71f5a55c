package cli

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"github.com/affleet/affleet/cli/internal/document"
	adminv1 "github.com/affleet/affleet/proto/aff/admin/v1"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

// nouns are the kinds of resources that have verbs of their own.
var nouns = []*noun{linkNoun, domainNoun, affiliateNoun}

// noun is all that the verbs need to know about a kind of resource.
type noun struct {
	name, plural string
	kind         adminv1.Kind
	short, long  string
	keyArg       string // what the argument that names one looks like
	valueArg     string // a second argument of create and update; "" for none
	valueField   string // the field that it sets
	make         func(arg string) (*linkv1.Resource, error)
	fields       []fieldFlag
	shorts       []shortFlag
	filters      []string // flags of list: domain, affiliate, label, prefix
	columns      []column
	examples     map[string]string // by verb
}

// fieldFlag is a flag that sets a field of the message, by its proto name.
type fieldFlag struct{ flag, field, usage string }

// column is one of list's table.
type column struct {
	header string
	cell   func(*app, *linkv1.Resource) string
}

// command holds the verbs.
func (n *noun) command(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use: n.name, Short: n.short, Long: n.long, Example: n.examples["create"],
		Args: cobra.ArbitraryArgs, RunE: group,
	}
	cmd.AddCommand(n.create(a), n.get(a), n.listCommand(a), n.update(a), n.delete(a))
	return cmd
}

// edit are the flags of create and update.
type edit struct {
	noun   *noun
	values map[string]*fieldValue // by field
	shorts map[string]*[]string   // by flag
	labels []string
	dryRun bool
	etag   string
	wait   waiting
	out    format
}

// fieldValue is the text of a field's flag; it is checked when it is used.
type fieldValue struct {
	text string
	kind protoreflect.Kind
}

func (v *fieldValue) String() string     { return "" }
func (v *fieldValue) Set(s string) error { v.text = s; return nil }
func (v *fieldValue) Type() string       { return v.kind.String() } // "bool" for one

func (n *noun) editFlags(cmd *cobra.Command, labelUsage string) *edit {
	e := &edit{noun: n, values: map[string]*fieldValue{}, shorts: map[string]*[]string{}}
	fds := document.Message(document.Blank(n.title())).Descriptor().Fields()
	flags := cmd.Flags()
	for _, f := range n.fields {
		v := &fieldValue{kind: fds.ByName(protoreflect.Name(f.field)).Kind()}
		e.values[f.field] = v
		flags.Var(v, f.flag, f.usage)
		if v.kind == protoreflect.BoolKind {
			flags.Lookup(f.flag).NoOptDefVal = "true"
		}
	}
	for _, s := range n.shorts {
		e.shorts[s.flag] = flags.StringArray(s.flag, nil, s.usage)
	}
	flags.StringArrayVar(&e.labels, "label", nil, labelUsage)
	flags.BoolVar(&e.dryRun, "dry-run", false, "check everything, write nothing")
	return e
}

// title is the name of the noun's message: "Link".
func (n *noun) title() string { return strings.ToUpper(n.name[:1]) + n.name[1:] }

// apply sets what the arguments and flags say, and gives the fields that they
// name. Labels are not among them.
func (e *edit) apply(a *app, flags *pflag.FlagSet, args []string, r *linkv1.Resource) (changed []string, err error) {
	m := document.Message(r)
	fds := m.Descriptor().Fields()
	set := func(field, where, text string) error {
		fd := fds.ByName(protoreflect.Name(field))
		if err := document.SetText(m, fd, a.relativeTime(fd, text)); err != nil {
			return usagef("", "%s %s", where, err)
		}
		changed = append(changed, field)
		return nil
	}
	if len(args) > 1 {
		if err := set(e.noun.valueField, e.noun.valueArg, args[1]); err != nil {
			return nil, err
		}
	}
	for _, f := range e.noun.fields {
		if !flags.Changed(f.flag) {
			continue
		}
		if err := set(f.field, "--"+f.flag, e.values[f.field].text); err != nil {
			return nil, err
		}
	}
	for _, s := range e.noun.shorts {
		if !flags.Changed(s.flag) {
			continue
		}
		texts := *e.shorts[s.flag]
		if !s.many && len(texts) > 1 {
			return nil, usagef("", "--%s is given %d times", s.flag, len(texts))
		}
		if err := s.apply(r, texts); err != nil {
			return nil, err
		}
		changed = append(changed, s.field)
	}
	return changed, nil
}

// relativeTime turns "+36h" and "+30d" into a time from now on.
func (a *app) relativeTime(fd protoreflect.FieldDescriptor, text string) string {
	rest, ok := strings.CutPrefix(text, "+")
	if !ok || fd.Message() == nil || fd.Message().FullName() != "google.protobuf.Timestamp" {
		return text
	}
	if days, ok := strings.CutSuffix(rest, "d"); ok {
		var n int
		if _, err := fmt.Sscanf(days, "%d", &n); err == nil && fmt.Sprint(n) == days {
			return a.now().AddDate(0, 0, n).UTC().Format(time.RFC3339)
		}
	}
	if d, err := time.ParseDuration(rest); err == nil {
		return a.now().Add(d).UTC().Format(time.RFC3339)
	}
	return text
}

// mergeLabels adds "k=v" and removes "k-".
func mergeLabels(labels map[string]string, edits []string) (map[string]string, error) {
	labels = maps.Clone(labels)
	if labels == nil {
		labels = map[string]string{}
	}
	for _, text := range edits {
		key, value, ok := strings.Cut(text, "=")
		switch {
		case ok && key != "":
			labels[key] = value
		case strings.HasSuffix(text, "-") && len(text) > 1:
			delete(labels, strings.TrimSuffix(text, "-"))
		default:
			return nil, usagef("", "--label must be key=value, not %q", text)
		}
	}
	return labels, nil
}

func labelsOf(r *linkv1.Resource) map[string]string {
	switch k := r.GetKind().(type) {
	case *linkv1.Resource_Link:
		return k.Link.GetLabels()
	case *linkv1.Resource_Domain:
		return k.Domain.GetLabels()
	case *linkv1.Resource_Affiliate:
		return k.Affiliate.GetLabels()
	}
	return nil
}

func setLabels(r *linkv1.Resource, labels map[string]string) {
	switch k := r.GetKind().(type) {
	case *linkv1.Resource_Link:
		k.Link.Labels = labels
	case *linkv1.Resource_Domain:
		k.Domain.Labels = labels
	case *linkv1.Resource_Affiliate:
		k.Affiliate.Labels = labels
	}
}

func (n *noun) create(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use: strings.TrimSpace("create " + n.keyArg + " " + n.valueArg), Short: "Make a new " + n.name,
		Example: n.examples["create"], Args: argCount(1, 1),
	}
	if n.valueArg != "" {
		cmd.Args = argCount(2, 2)
	}
	e := n.editFlags(cmd, "a label `KEY=VALUE`; may be repeated")
	e.wait.addTo(cmd)
	e.out.addTo(cmd, "table", "json", "yaml", "name")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		r, err := n.make(args[0])
		if err != nil {
			return err
		}
		if _, err := e.apply(a, cmd.Flags(), args, r); err != nil {
			return err
		}
		if len(e.labels) > 0 {
			labels, err := mergeLabels(nil, e.labels)
			if err != nil {
				return err
			}
			setLabels(r, labels)
		}
		service, err := a.links()
		if err != nil {
			return err
		}
		resp, err := service.Create(cmd.Context(), &adminv1.CreateRequest{Resource: r, ValidateOnly: e.dryRun})
		if err != nil {
			return err
		}
		return e.done(cmd.Context(), a, "created", resp.GetResource(), resp.GetVersion())
	}
	return cmd
}

// done tells what was written, and waits for it to be served.
func (e *edit) done(ctx context.Context, a *app, verb string, r *linkv1.Resource, version *linkv1.Version) error {
	switch {
	case e.out.value != "table":
		if err := a.printer(e.noun, e.out.value, false).resource(r); err != nil {
			return err
		}
	default:
		name, err := link.Name(r)
		if err != nil {
			return err
		}
		a.wrote(verb, name, version, e.dryRun)
	}
	if e.dryRun {
		return nil
	}
	return a.wait(ctx, &e.wait, version)
}

// wrote prints the line of one write: created link "x" (version 12).
func (a *app) wrote(verb, name string, version *linkv1.Version, dryRun bool) {
	color := map[string]string{"created": green, "updated": amber, "deleted": red}[verb]
	verb = a.paint(a.stdout, color, verb)
	if dryRun {
		a.printf("%s %s (dry run)\n", verb, subject(name))
		return
	}
	a.printf("%s %s (version %d)\n", verb, subject(name), version.GetRevision())
}

func (n *noun) get(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use: "get " + n.keyArg + "...", Short: "Show a " + n.name, Example: n.examples["get"],
		Args: argCount(1, -1), ValidArgsFunction: n.complete(a),
	}
	if strings.HasPrefix(n.name, "a") {
		cmd.Short = "Show an " + n.name
	}
	var out format
	out.addTo(cmd, "table", "json", "yaml", "name")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		service, err := a.links()
		if err != nil {
			return err
		}
		p := a.printer(n, out.value, false)
		return n.each(args, func(name string) error {
			resp, err := service.Get(cmd.Context(), &adminv1.GetRequest{Name: name})
			if err != nil {
				return err
			}
			return p.resource(resp.GetResource())
		})
	}
	return cmd
}

// each calls do for the name of each argument, and goes on behind errors of
// one, but not of the server.
func (n *noun) each(args []string, do func(name string) error) error {
	var errs []error
	names := make([]string, len(args))
	for i, arg := range args {
		r, err := n.make(arg)
		if err != nil {
			return err
		}
		if names[i], err = link.Name(r); err != nil {
			return argument(arg, err)
		}
	}
	for _, name := range names {
		if err := do(name); err != nil {
			errs = append(errs, err)
			if code := describe(err).code; code == codeUnavailable || code == codeTimeout {
				break
			}
		}
	}
	return errors.Join(errs...)
}

func (n *noun) update(a *app) *cobra.Command {
	use, most := "update "+n.keyArg, 1
	if n.valueArg != "" {
		use, most = use+" ["+n.valueArg+"]", 2
	}
	cmd := &cobra.Command{
		Use: use, Short: "Change the fields that are given, keep the others",
		Example: n.examples["update"], Args: argCount(1, most), ValidArgsFunction: n.complete(a),
	}
	e := n.editFlags(cmd, "set a label `KEY=VALUE`, or remove it: KEY-")
	cmd.Flags().StringVar(&e.etag, "etag", "", "only if the stored one has this `ETAG`, its revision")
	e.wait.addTo(cmd)
	e.out.addTo(cmd, "table", "json", "yaml", "name")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		r, err := n.make(args[0])
		if err != nil {
			return err
		}
		mask, err := e.apply(a, cmd.Flags(), args, r)
		if err != nil {
			return err
		}
		if len(mask) == 0 && len(e.labels) == 0 {
			return usagef("see "+cmd.CommandPath()+" --help", "nothing to change")
		}
		service, err := a.links()
		if err != nil {
			return err
		}
		resp, err := e.update(cmd.Context(), service, r, mask)
		if err != nil {
			return err
		}
		return e.done(cmd.Context(), a, "updated", resp.GetResource(), resp.GetVersion())
	}
	return cmd
}

// update writes the fields of the mask. Labels are merged into those that are
// stored, under their etag; somebody else's write in between is met with
// another attempt unless the user gave the etag.
func (e *edit) update(ctx context.Context, service adminv1.LinkServiceClient, r *linkv1.Resource, mask []string) (*adminv1.UpdateResponse, error) {
	req := &adminv1.UpdateRequest{Resource: r, Etag: e.etag, ValidateOnly: e.dryRun}
	if len(e.labels) == 0 {
		req.UpdateMask = &fieldmaskpb.FieldMask{Paths: mask}
		return service.Update(ctx, req)
	}
	name, err := link.Name(r)
	if err != nil {
		return nil, err
	}
	req.UpdateMask = &fieldmaskpb.FieldMask{Paths: append(slices.Clone(mask), "labels")}
	const attempts = 5
	for attempt := 1; ; attempt++ {
		stored, err := service.Get(ctx, &adminv1.GetRequest{Name: name})
		if err != nil {
			return nil, err
		}
		labels, err := mergeLabels(labelsOf(stored.GetResource()), e.labels)
		if err != nil {
			return nil, err
		}
		setLabels(r, labels)
		req.Etag = first(e.etag, stored.GetEtag())
		resp, err := service.Update(ctx, req)
		if status.Code(err) != codes.Aborted || e.etag != "" || attempt == attempts {
			return resp, err
		}
	}
}

func (n *noun) delete(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use: "delete " + n.keyArg + "...", Short: "Remove " + n.plural,
		Example: n.examples["delete"], Args: argCount(1, -1), ValidArgsFunction: n.complete(a),
	}
	var etag string
	var dryRun, allowShrink bool
	var wait waiting
	var out format
	cmd.Flags().StringVar(&etag, "etag", "", "only if the stored one has this `ETAG`, its revision")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "check everything, delete nothing")
	cmd.Flags().BoolVar(&allowShrink, "allow-shrink", false, "pass the guards, however much is deleted")
	wait.addTo(cmd)
	out.addTo(cmd, "table", "name")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if etag != "" && len(args) > 1 {
			return usagef("", "--etag goes with one %s, not with %d", n.name, len(args))
		}
		service, err := a.links()
		if err != nil {
			return err
		}
		var last *linkv1.Version
		err = n.each(args, func(name string) error {
			resp, err := service.Delete(cmd.Context(), &adminv1.DeleteRequest{Name: name, Etag: etag, ValidateOnly: dryRun, AllowShrink: allowShrink})
			if err != nil {
				return err
			}
			last = resp.GetVersion()
			if out.value == "name" {
				a.printf("%s\n", name)
			} else {
				a.wrote("deleted", name, last, dryRun)
			}
			return nil
		})
		if err != nil || dryRun {
			return err
		}
		return a.wait(cmd.Context(), &wait, last)
	}
	return cmd
}
