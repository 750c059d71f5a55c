package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/affleet/affleet/cli/internal/document"
	adminv1 "github.com/affleet/affleet/proto/aff/admin/v1"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

// applying is one run of apply.
type applying struct {
	a      *app
	files  []string
	dryRun bool
	prune  bool
	yes    bool
	shrink bool
	scope  filterFlags
	wait   waiting

	docs  []fileDocument
	byKey map[string]int // name -> index of docs
}

// fileDocument is a document and where it stands.
type fileDocument struct {
	document.Document
	file   string
	stored *linkv1.Resource // nil: there is none, or it was not read
}

func newApply(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use: "apply -f FILE", Short: "Make resources what files say",
		Long: `Make resources what YAML or JSON files say: a document has a kind (Link, Domain,
Affiliate, Block, Policy, or List with items) and the fields of its message.
Everything that is wrong with the files is said first, with lines, and nothing
is written then. --prune also deletes the links of --domain or --label that no
file has.`,
		Example: `  affctl apply -f links.yaml --dry-run
  affctl apply -f links/ --wait
  affctl apply -f links/ --prune --domain go.example.com
  affctl link get /go/sale -o yaml | sed s/p1/p2/ | affctl apply -f -`,
		Args: argCount(0, 0), DisableFlagsInUseLine: true,
	}
	p := &applying{a: a, byKey: map[string]int{}}
	flags := cmd.Flags()
	flags.StringArrayVarP(&p.files, "file", "f", nil, "`FILE`, - for stdin, or a folder; may be repeated")
	flags.BoolVar(&p.dryRun, "dry-run", false, "show the difference, write nothing")
	flags.BoolVar(&p.prune, "prune", false, "delete links that no file has; with --domain or --label")
	flags.BoolVarP(&p.yes, "yes", "y", false, "delete without asking")
	flags.BoolVar(&p.shrink, "allow-shrink", false, "prune past the guards, however much that deletes")
	flags.StringVar(&p.scope.domain, "domain", "", "prune only links of this `HOST`")
	flags.StringArrayVar(&p.scope.labels, "label", nil, "prune only links with this label, `KEY=VALUE` or KEY")
	p.wait.addTo(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		scoped := p.scope.domain != "" || len(p.scope.labels) > 0
		switch {
		case len(p.files) == 0:
			return usagef("affctl apply -f links.yaml", "-f is missing")
		case p.prune && !scoped:
			return usagef("", "--prune needs --domain or --label, so that it cannot delete everything")
		case !p.prune && p.shrink:
			return usagef("", "--allow-shrink only goes with --prune")
		case !p.prune && scoped:
			return usagef("", "--domain and --label only go with --prune")
		}
		return p.run(cmd.Context())
	}
	return cmd
}

func (p *applying) run(ctx context.Context) error {
	if err := p.read(ctx); err != nil {
		return err
	}
	if len(p.docs) == 0 && !p.prune {
		p.a.notef("no documents in %s", strings.Join(p.files, ", "))
		return nil
	}
	// What others refer to comes first; the order of the files decides else.
	slices.SortStableFunc(p.docs, func(x, y fileDocument) int { return kindOrder(x.Name) - kindOrder(y.Name) })
	for i, d := range p.docs {
		p.byKey[d.Name] = i
	}
	stale, err := p.stale(ctx)
	if err != nil {
		return err
	}
	// Above this, reading what is stored costs more than it tells.
	const maxLines = 500
	known := p.dryRun || len(p.docs) <= maxLines
	if known {
		if err := p.readStored(ctx); err != nil {
			return err
		}
	}
	if p.dryRun {
		if err := p.showDiff(stale); err != nil {
			return err
		}
	} else if len(stale) > 0 && !p.yes {
		p.list(stale)
		if err := p.a.confirm(fmt.Sprintf("Delete %s?", count(int64(len(stale)), "link")), "--dry-run"); err != nil {
			return err
		}
	}
	return p.write(ctx, known && !p.dryRun, stale)
}

func kindOrder(name string) int {
	kind, _, err := link.ParseName(name)
	if err != nil {
		return len(link.Kinds)
	}
	return slices.Index(link.Kinds, kind)
}

// read parses all files; the error holds all their problems.
func (p *applying) read(ctx context.Context) error {
	paths, err := expand(p.files)
	if err != nil {
		return err
	}
	var errs []error
	for _, path := range paths {
		input, name, _, err := p.a.open(path)
		if err != nil {
			return err
		}
		data, err := io.ReadAll(untilDone(ctx, input))
		if err = errors.Join(err, input.Close()); err != nil {
			return fmt.Errorf("read %s: %w", name, err)
		}
		docs, problems := document.Parse(name, data)
		slices.SortStableFunc(problems, func(x, y *document.Problem) int { return x.Line - y.Line })
		for _, problem := range problems {
			errs = append(errs, problem)
		}
		for _, d := range docs {
			if i, ok := p.byKey[d.Name]; ok {
				errs = append(errs, &document.Problem{File: name, Line: d.Line, Message: fmt.Sprintf("%s is in two files: first in %s:%d", d.Name, p.docs[i].file, p.docs[i].Line)})
				continue
			}
			p.byKey[d.Name] = len(p.docs)
			p.docs = append(p.docs, fileDocument{Document: d, file: name})
		}
	}
	if len(errs) > 1 {
		errs = append(errs, &failure{code: codeError, message: fmt.Sprintf("%d problems: nothing was written", len(errs))})
	}
	return errors.Join(errs...)
}

// expand replaces folders by the files in them, however deep.
func expand(files []string) ([]string, error) {
	var paths []string
	for _, file := range files {
		if info, err := os.Stat(file); file == "-" || err != nil || !info.IsDir() {
			paths = append(paths, file) // what cannot be read is found out when it is
			continue
		}
		before := len(paths)
		err := filepath.WalkDir(file, func(path string, d fs.DirEntry, err error) error {
			hidden := strings.HasPrefix(d.Name(), ".") && path != file
			switch {
			case err != nil:
				return err
			case d.IsDir() && hidden:
				return fs.SkipDir
			case !d.IsDir() && !hidden && slices.Contains([]string{".yaml", ".yml", ".json"}, strings.ToLower(filepath.Ext(path))):
				paths = append(paths, path)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
		if len(paths) == before {
			return nil, &failure{code: codeError, message: file + ": there are no .yaml, .yml or .json files in it"}
		}
	}
	return paths, nil
}

// readStored reads what the documents would replace.
func (p *applying) readStored(ctx context.Context) error {
	service, err := p.a.links()
	if err != nil {
		return err
	}
	const atOnce = 16
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(atOnce)
	for i := range p.docs {
		group.Go(func() error {
			resp, err := service.Get(ctx, &adminv1.GetRequest{Name: p.docs[i].Name})
			if status.Code(err) == codes.NotFound {
				return nil
			}
			p.docs[i].stored = resp.GetResource()
			return err
		})
	}
	return group.Wait()
}

// verb says what applying a document does to what is stored.
func (d *fileDocument) verb() string {
	switch {
	case d.stored == nil:
		return "created"
	case document.Equal(d.stored, d.Resource):
		return "unchanged"
	}
	return "updated"
}

// stale are the links in the scope that no file has.
func (p *applying) stale(ctx context.Context) ([]*linkv1.Link, error) {
	if !p.prune {
		return nil, nil
	}
	filter, err := p.scope.filter(adminv1.Kind_KIND_LINK)
	if err != nil {
		return nil, err
	}
	var stale []*linkv1.Link
	err = p.a.list(ctx, filter, 0, func(r *linkv1.Resource) error {
		l := r.GetLink()
		if _, ok := p.byKey[link.LinkName(l.GetDomain(), l.GetPath())]; !ok {
			stale = append(stale, l)
		}
		return nil
	})
	return stale, err
}

// list names what will be deleted.
func (p *applying) list(stale []*linkv1.Link) {
	const most = 20
	for i, l := range stale {
		if i == most {
			p.a.notef("  and %s more", thousands(int64(len(stale)-most)))
			break
		}
		p.a.notef("  %s link %q -> %s", p.a.paint(p.a.stderr, red, "delete"), l.GetDomain()+l.GetPath(), printable(l.GetDestination()))
	}
}

// showDiff prints what would change.
func (p *applying) showDiff(stale []*linkv1.Link) error {
	for i := range p.docs {
		d := &p.docs[i]
		revision := int64(0)
		if d.stored != nil {
			m := document.Message(d.stored)
			revision = m.Get(m.Descriptor().Fields().ByName("revision")).Int()
		}
		if d.verb() == "unchanged" {
			continue
		}
		after, err := document.YAML(d.Resource)
		if err != nil {
			return err
		}
		before, beforeName := []byte(nil), "/dev/null"
		if d.stored != nil {
			if before, err = document.YAML(d.stored); err != nil {
				return err
			}
			beforeName = fmt.Sprintf("%s (version %d)", d.Name, revision)
		}
		p.printDiff(unifiedDiff(string(before), string(after), beforeName, fmt.Sprintf("%s (%s:%d)", d.Name, d.file, d.Line)))
	}
	for _, l := range stale {
		name := link.LinkName(l.GetDomain(), l.GetPath())
		revision := l.GetRevision()
		r := &linkv1.Resource{Kind: &linkv1.Resource_Link{Link: l}}
		document.ClearReadOnly(r)
		before, err := document.YAML(r)
		if err != nil {
			return err
		}
		p.printDiff(unifiedDiff(string(before), "", fmt.Sprintf("%s (version %d)", name, revision), "/dev/null"))
	}
	return nil
}

func (p *applying) printDiff(diff string) {
	for _, line := range lines(diff) {
		color := map[byte]string{'-': red, '+': green, '@': cyan}[line[0]]
		if strings.HasPrefix(line, "--- ") || strings.HasPrefix(line, "+++ ") {
			color = bold
		}
		if color != "" {
			line = p.a.paint(p.a.stdout, color, line)
		}
		p.a.printf("%s\n", line)
	}
}

// write imports the documents, deletes what is stale, tells and waits.
func (p *applying) write(ctx context.Context, known bool, stale []*linkv1.Link) error {
	started := time.Now()
	failed := map[string]bool{}
	forgiven := int64(0)
	imp := &importer{a: p.a, options: &adminv1.ImportOptions{ValidateOnly: p.dryRun}}
	imp.bar = p.a.progress("applying", int64(len(p.docs)), false)
	imp.onError = func(at place, e *adminv1.RowError) {
		if p.dryRun && missingAffiliate(e) && p.affiliateComes(e.GetName()) {
			forgiven++ // it is written before its links are
			return
		}
		failed[e.GetName()] = true
		imp.printRowError(p.fieldPlace(at, e), e)
	}
	total, err := imp.run(ctx, func(_ context.Context, emit func(row) error) error { return p.emit(emit) })
	if total != nil {
		total.Failed -= forgiven
		total.Created += forgiven
	}
	if known {
		for i := range p.docs {
			if d := &p.docs[i]; err == nil && !failed[d.Name] && d.verb() != "unchanged" {
				p.a.printf("%s %s\n", p.a.paint(p.a.stdout, map[string]string{"created": green, "updated": amber}[d.verb()], d.verb()), subject(d.Name))
			}
		}
	}
	if err != nil {
		imp.ended(total, err)
		return err
	}
	deleted, version := 0, total.GetVersion()
	if total.GetFailed() > 0 && len(stale) > 0 {
		p.a.warnf("nothing is pruned, because not everything was written")
	} else if deleted, err = p.deleteStale(ctx, stale, &version); err != nil {
		return err
	}
	p.a.appliedSummary(total, deleted, time.Since(started), p.dryRun)
	if p.dryRun {
		version = nil
	}
	if err := p.a.wait(ctx, &p.wait, version); err != nil {
		return err
	}
	switch total.GetFailed() {
	case 0:
		return nil
	case total.GetRows():
		return silent(codeError)
	}
	return silent(codePartly)
}

func (p *applying) emit(emit func(row) error) error {
	for i, d := range p.docs {
		if err := emit(row{resource: d.Resource, place: place{d.file, d.Line}, done: int64(i + 1)}); err != nil {
			return err
		}
	}
	return nil
}

// affiliateComes says whether the affiliate of a link is in the files.
func (p *applying) affiliateComes(name string) bool {
	i, ok := p.byKey[name]
	if !ok {
		return false
	}
	_, ok = p.byKey[link.Affiliates.Prefix()+p.docs[i].Resource.GetLink().GetAffiliate()]
	return ok
}

// fieldPlace is the line of the field at fault, where it is known.
func (p *applying) fieldPlace(at place, e *adminv1.RowError) place {
	if i, ok := p.byKey[e.GetName()]; ok {
		if line, ok := p.docs[i].Fields[e.GetField()]; ok {
			at.line = line
		}
	}
	return at
}

// deleteStale deletes links that are as they were when they were listed, by
// the hundred, and raises version to that of the last write.
func (p *applying) deleteStale(ctx context.Context, stale []*linkv1.Link, version **linkv1.Version) (int, error) {
	if p.dryRun || len(stale) == 0 {
		return len(stale), nil
	}
	service, err := p.a.links()
	if err != nil {
		return 0, err
	}
	const most = 100
	deleted := 0
	for part := range slices.Chunk(stale, most) {
		req := &adminv1.BatchWriteRequest{AllowShrink: p.shrink}
		for _, l := range part {
			req.Writes = append(req.Writes, &adminv1.Write{Verb: &adminv1.Write_Delete{Delete: &adminv1.DeleteRequest{
				Name: link.LinkName(l.GetDomain(), l.GetPath()), Etag: strconv.FormatInt(l.GetRevision(), 10), AllowMissing: true,
			}}})
		}
		resp, err := service.BatchWrite(ctx, req)
		if err != nil {
			return deleted, fmt.Errorf("prune: %w", err)
		}
		for _, l := range part {
			p.a.printf("%s %s\n", p.a.paint(p.a.stdout, red, "deleted"), subject(link.LinkName(l.GetDomain(), l.GetPath())))
		}
		deleted += len(part)
		*version = resp.GetVersion()
	}
	return deleted, nil
}

// appliedSummary is summary with what was deleted.
func (a *app) appliedSummary(t *adminv1.ImportProgress, deleted int, took time.Duration, dryRun bool) {
	text := accountOf(t)
	if deleted > 0 {
		text = append(text, thousands(int64(deleted))+" deleted")
	}
	if len(text) == 0 {
		text = []string{"nothing to do"}
	}
	suffix := fmt.Sprintf(" (%s)", took.Round(10*time.Millisecond))
	if dryRun {
		suffix = " (dry run)"
	}
	a.printf("applied: %s%s\n", strings.Join(text, ", "), suffix)
}
