package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/affleet/affleet/cli/internal/document"
	adminv1 "github.com/affleet/affleet/proto/aff/admin/v1"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

// blocking is one run of fraud block.
type blocking struct {
	a               *app
	match           matching
	id, ttl, action string
	block           *linkv1.Block // what all blocks of the run say
	file            string
	dryRun          bool
	wait            waiting
	out             format
}

func newFraudBlock(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use: "block ADDRESS|PREFIX", Short: "Label, divert or refuse the requests of a source",
		Long: `Label, divert or refuse the requests of an address, a prefix, a user agent or an
affiliate: all nodes do within a second. What is blocked already is changed, and
its --ttl counts anew. --from-file reads a list of prefixes, one in a line, #
begins a comment: when a line is wrong it says so, and writes nothing. A list
that is written again before its --ttl is over stands on, without what is no
more in it.`,
		Example: `  affctl fraud block 203.0.113.7 --reason 'click flood' --ttl 1h --action refuse
  affctl fraud block --user-agent 'BadBot/1.0' --reason crawler --wait
  affctl fraud block --user-agent 'Odd/2' --only-affiliate aff_01 --reason list
  affctl fraud block --from-file aws --label datacenter --reason AWS --ttl 7d`,
		Args: argCount(0, 1), DisableFlagsInUseLine: true,
	}
	b := &blocking{a: a, block: &linkv1.Block{}}
	flags := cmd.Flags()
	b.match.addTo(cmd)
	flags.StringVar(&b.file, "from-file", "", "the prefixes of this list, `FILE` or - for stdin")
	flags.StringVar(&b.block.OnlyAffiliate, "only-affiliate", "", "only on links of this affiliate `ID`")
	flags.StringVar(&b.block.Reason, "reason", "", "why: `TEXT` for people and for the click's label")
	flags.StringVar(&b.ttl, "ttl", "", "it ends after this `TIME`, 90s, 12h or 30d (else never)")
	flags.StringVar(&b.action, "action", "", "`ACTION`: label (the default), no_affiliate, fallback, refuse")
	flags.StringVar(&b.block.Label, "label", "", "`LABEL` of the clicks: blocked (the default), datacenter")
	flags.StringVar(&b.block.Finding, "finding", "", "the finding `ID` that it is for")
	flags.StringVar(&b.id, "id", "", "the `ID` of the block (else one that tells what it matches)")
	flags.BoolVar(&b.dryRun, "dry-run", false, "check everything, write nothing")
	b.wait.addTo(cmd)
	b.out.addTo(cmd, "table", "json", "yaml", "name")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := b.check(args); err != nil {
			return err
		}
		if b.file != "" {
			return b.list(cmd.Context())
		}
		return b.one(cmd.Context(), args)
	}
	return cmd
}

// check reads what all blocks of the run say.
func (b *blocking) check(args []string) (err error) {
	sources := len(args)
	for _, text := range []string{b.match.userAgent, b.match.affiliate, b.file} {
		if text != "" {
			sources++
		}
	}
	switch {
	case sources != 1:
		return usagef("affctl fraud block 203.0.113.7 --reason 'click flood'", "name one of ADDRESS, --user-agent, --affiliate and --from-file")
	case b.block.Reason == "":
		return usagef("--reason 'click flood'", "--reason is missing: people and clicks are told why")
	case b.file != "" && b.id != "":
		return usagef("", "--id names one block, and a list makes many")
	case b.file != "" && b.out.value != "table":
		return usagef("affctl fraud blocks -o "+b.out.value, "-o does not go with --from-file")
	}
	if b.action != "" {
		if b.block.Action, err = parseAction(b.action); err != nil {
			return err
		}
	}
	if b.ttl != "" {
		if b.block.Ttl, err = parseTTL(b.ttl); err != nil {
			return usagef("", "--ttl %s", err)
		}
	}
	return nil
}

// one writes one block, whether there is one or not.
func (b *blocking) one(ctx context.Context, args []string) error {
	if b.match.set(b.block); len(args) == 1 {
		if err := setPrefix(b.block, args[0]); err != nil {
			return argument(args[0], err)
		}
	}
	b.block.Id = first(strings.TrimPrefix(b.id, link.Blocks.Prefix()), matchID(b.block))
	service, err := b.a.links()
	if err != nil {
		return err
	}
	resp, err := service.Update(ctx, &adminv1.UpdateRequest{
		Resource: &linkv1.Resource{Kind: &linkv1.Resource_Block{Block: b.block}}, AllowMissing: true, ValidateOnly: b.dryRun,
	})
	if err != nil {
		return err
	}
	verb, written := "updated", resp.GetResource().GetBlock()
	if proto.Equal(written.GetCreateTime(), written.GetUpdateTime()) {
		verb = "created"
	}
	e := &edit{noun: blockNoun, dryRun: b.dryRun, wait: b.wait, out: b.out}
	return e.done(ctx, b.a, verb, resp.GetResource(), resp.GetVersion())
}

// list writes a block for each line of a file.
func (b *blocking) list(ctx context.Context) error {
	in, name, _, err := b.a.open(b.file)
	if err != nil {
		return err
	}
	rows, err := b.read(untilDone(ctx, in), name)
	if err = errors.Join(err, in.Close()); err != nil {
		return err
	}
	started := time.Now()
	imp := &importer{a: b.a, options: &adminv1.ImportOptions{ValidateOnly: b.dryRun}}
	imp.bar = b.a.progress("blocking", int64(len(rows)), false)
	total, err := imp.run(ctx, func(_ context.Context, emit func(row) error) error {
		for _, r := range rows {
			if err := emit(r); err != nil {
				return err
			}
		}
		return nil
	})
	return imp.finish(ctx, total, err, started, &b.wait)
}

// maxListLine bounds a line of a list, in bytes.
const maxListLine = 4096

// read makes blocks of the lines of a list. The error holds all its problems.
func (b *blocking) read(in io.Reader, name string) ([]row, error) {
	var rows []row
	var errs []error
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, maxListLine)
	seen := map[string]bool{}
	line := 0
	for lines.Scan() {
		line++
		text, _, _ := strings.Cut(strings.TrimPrefix(lines.Text(), "\ufeff"), "#")
		if text = strings.TrimSpace(text); text == "" {
			continue
		}
		one := proto.CloneOf(b.block)
		if err := setPrefix(one, text); err != nil {
			e := link.Problems(err)[0]
			errs = append(errs, &document.Problem{File: name, Line: line, Message: e.Message, Hint: e.Hint})
			continue
		}
		if one.Id = matchID(one); !seen[one.Id] {
			seen[one.Id] = true
			rows = append(rows, row{
				resource: &linkv1.Resource{Kind: &linkv1.Resource_Block{Block: one}}, place: place{name, line}, done: int64(len(rows) + 1),
			})
		}
	}
	if err := lines.Err(); errors.Is(err, bufio.ErrTooLong) {
		errs = append(errs, &document.Problem{File: name, Line: line + 1, Message: fmt.Sprintf("is longer than %d bytes", maxListLine)})
	} else if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	switch {
	case len(errs) > 0:
		const most = 20
		if n := len(errs); n > most {
			errs = append(errs[:most], &failure{code: codeError, message: fmt.Sprintf("and %d more", n-most)})
		}
		return nil, errors.Join(append(errs, &failure{code: codeError, message: "nothing was written"})...)
	case len(rows) == 0:
		return nil, &failure{code: codeError, message: name + ": there is no prefix in it"}
	}
	return rows, nil
}

func newFraudUnblock(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use: "unblock ID|PREFIX...", Short: "Take blocks away",
		Long: `Take blocks away, by their ids or by exactly what they match: all nodes forget
them within a second, also while an import runs or a version is held back.`,
		Example: "  affctl fraud unblock 203.0.113.7 --wait\n  affctl fraud unblock net-203.0.113.0-24\n  affctl fraud unblock --user-agent 'BadBot/1.0'",
		Args:    argCount(0, -1), ValidArgsFunction: blockNoun.complete(a), DisableFlagsInUseLine: true,
	}
	var match matching
	var dryRun bool
	var wait waiting
	match.addTo(cmd)
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "check everything, delete nothing")
	wait.addTo(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		asked := &linkv1.Block{}
		if match.set(asked); asked.Match == nil && len(args) == 0 {
			return usagef("affctl fraud blocks", "name a block: ID, PREFIX, --user-agent or --affiliate")
		}
		deletes, err := a.named(cmd, args, asked)
		if err != nil {
			return err
		}
		version, err := a.unblock(cmd.Context(), deletes, dryRun)
		if err != nil || dryRun {
			return err
		}
		return a.wait(cmd.Context(), &wait, version)
	}
	return cmd
}

// named gives the deletion of the blocks that arguments name, and of those that
// match what another one does.
func (a *app) named(cmd *cobra.Command, args []string, asked *linkv1.Block) (deletes []*adminv1.DeleteRequest, err error) {
	var wanted []*linkv1.Block // by what they match
	if asked.Match != nil {
		wanted = append(wanted, asked)
	}
	for _, arg := range args {
		b := &linkv1.Block{Id: arg}
		if setPrefix(b, arg) == nil {
			wanted = append(wanted, b)
			continue
		}
		r, err := blockNoun.make(arg)
		if err != nil {
			return nil, usagef("affctl fraud blocks lists them", "%q is neither the id of a block nor a prefix", arg)
		}
		deletes = append(deletes, &adminv1.DeleteRequest{Name: link.Blocks.Prefix() + r.GetBlock().GetId()})
	}
	if len(wanted) == 0 {
		return deletes, nil
	}
	found, wider := make([]bool, len(wanted)), make([]string, len(wanted))
	err = a.blocks(cmd, func(b *linkv1.Block) error {
		for i, w := range wanted {
			if sameMatch(b, w) {
				found[i] = true
				deletes = append(deletes, &adminv1.DeleteRequest{Name: link.Blocks.Prefix() + b.GetId(), AllowMissing: true})
			} else if p, err := link.ParsePrefix(w.GetPrefix()); err == nil && covers(b, p) {
				wider[i] = b.GetId()
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for i, w := range wanted {
		switch {
		case found[i]:
		case wider[i] != "":
			return nil, &failure{
				code: codeNotFound, message: fmt.Sprintf("no block matches exactly %s; %s has it in it", matchText(w), subject(link.Blocks.Prefix()+wider[i])),
				hint: "affctl fraud unblock " + wider[i],
			}
		default:
			return nil, &failure{code: codeNotFound, message: "no block matches " + matchText(w), hint: "affctl fraud blocks lists them"}
		}
	}
	byName := func(x, y *adminv1.DeleteRequest) int { return strings.Compare(x.GetName(), y.GetName()) }
	slices.SortFunc(deletes, byName)
	return slices.CompactFunc(deletes, func(x, y *adminv1.DeleteRequest) bool { return byName(x, y) == 0 }), nil
}

// unblock deletes blocks by the hundred.
func (a *app) unblock(ctx context.Context, deletes []*adminv1.DeleteRequest, dryRun bool) (version *linkv1.Version, err error) {
	service, err := a.links()
	if err != nil {
		return nil, err
	}
	const most = 100
	for part := range slices.Chunk(deletes, most) {
		req := &adminv1.BatchWriteRequest{ValidateOnly: dryRun}
		for _, d := range part {
			req.Writes = append(req.Writes, &adminv1.Write{Verb: &adminv1.Write_Delete{Delete: d}})
		}
		resp, err := service.BatchWrite(ctx, req)
		if err != nil {
			return nil, err
		}
		version = resp.GetVersion()
		for _, d := range part {
			a.wrote("deleted", d.GetName(), version, dryRun)
		}
	}
	return version, nil
}

func newFraudBlocks(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use: "blocks [ID...]", Short: "Show what is blocked, by whom, why and for how long",
		Example: "  affctl fraud blocks\n  affctl fraud blocks net-203.0.113.7 -o yaml | sed s/1h/2h/ | affctl apply -f -",
		Args:    argCount(0, -1), ValidArgsFunction: blockNoun.complete(a), DisableFlagsInUseLine: true,
	}
	var affiliate, who string
	var limit int
	var out format
	cmd.Flags().StringVar(&affiliate, "affiliate", "", "only those of this affiliate `ID`")
	cmd.Flags().StringVar(&who, "by", "", "only those that were written by `WHO`: affguard")
	cmd.Flags().IntVar(&limit, "limit", 0, "at most `N` (else all)")
	out.addTo(cmd, "table", "json", "yaml", "name")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if limit < 0 {
			return usagef("", "--limit must not be negative")
		}
		p := a.printer(blockNoun, out.value, true)
		var err error
		if len(args) > 0 {
			err = a.someBlocks(cmd.Context(), args, p)
		} else {
			err = a.list(cmd.Context(), &adminv1.Filter{Kind: adminv1.Kind_KIND_BLOCK, Affiliate: affiliate}, 0, func(r *linkv1.Resource) error {
				switch {
				case who != "" && r.GetBlock().GetUpdatedBy() != who:
					return nil
				case limit > 0 && p.count == limit:
					return errEnough
				}
				return p.resource(r)
			})
		}
		if err != nil && !errors.Is(err, errEnough) {
			return err
		}
		return p.end()
	}
	return cmd
}

// someBlocks prints the blocks of some ids.
func (a *app) someBlocks(ctx context.Context, ids []string, p *printer) error {
	service, err := a.links()
	if err != nil {
		return err
	}
	return blockNoun.each(ids, func(name string) error {
		resp, err := service.Get(ctx, &adminv1.GetRequest{Name: name})
		if err != nil {
			return err
		}
		return p.resource(resp.GetResource())
	})
}

// blockOf reads one block; nil if there is none.
func (a *app) blockOf(ctx context.Context, id string) (*linkv1.Block, error) {
	r, err := a.maybe(ctx, link.Blocks.Prefix()+id)
	return r.GetBlock(), err
}

// maybe reads one resource; nil if there is none.
func (a *app) maybe(ctx context.Context, name string) (*linkv1.Resource, error) {
	service, err := a.links()
	if err != nil {
		return nil, err
	}
	resp, err := service.Get(ctx, &adminv1.GetRequest{Name: name})
	if status.Code(err) == codes.NotFound {
		return nil, nil
	}
	return resp.GetResource(), err
}
