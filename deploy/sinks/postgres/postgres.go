// Package postgres is the sink that brings clicks into PostgreSQL: COPY into a
// table that is partitioned by day. The place in the stream is written in the
// same transaction, so that each click is in the table exactly once.
//
// A Sink belongs to the goroutine of clickstream.Consume.
package postgres

import (
	"context"
	"crypto/rand"
	_ "embed" // for the schema
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/affleet/affleet/dataplane/clickstream"
)

//go:embed schema.sql
var schema string

// columns are those of aff_clicks, in the order of values.
var columns = []string{
	"time", "node", "boot", "sequence", "region", "epoch", "revision", "link", "affiliate", "campaign", "variant", "rule", "destination",
	"status", "method", "outcome", "address", "user_agent", "referrer", "languages", "host", "path", "parameters", "labels", "country", "asn",
}

// Sink writes into one database.
type Sink struct {
	url, name, owner string
	conn             *pgx.Conn
	clicks           []clickstream.Click
	days             map[time.Time]bool // whose partitions are there
}

// New checks the URL. Nothing is connected before Load.
func New(url, name string) (*Sink, error) {
	if _, err := pgx.ParseConfig(url); err != nil {
		return nil, fmt.Errorf("database: %w", err)
	}
	return &Sink{url: url, name: name}, nil
}

// Collect keeps clicks in memory until Save.
func (s *Sink) Collect(_ context.Context, b *clickstream.Batch) error {
	s.clicks = append(s.clicks, b.Clicks...)
	return nil
}

// Load connects, makes the tables where they are not there, and takes the name
// over from whoever ran under it.
func (s *Sink) Load(ctx context.Context) (state clickstream.State, err error) {
	s.clicks, s.days, s.owner = nil, map[time.Time]bool{}, rand.Text()
	s.Close(ctx)
	if s.conn, err = pgx.Connect(ctx, s.url); err != nil {
		return state, fmt.Errorf("connect to PostgreSQL: %w", err)
	}
	// Two sinks that start at once must not both make the tables.
	err = pgx.BeginFunc(ctx, s.conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock(4711160001)`); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, schema); err != nil {
			return fmt.Errorf("create tables: %w", err)
		}
		var text []byte
		if err := tx.QueryRow(ctx, `INSERT INTO aff_sinks (name, owner) VALUES ($1, $2)
			ON CONFLICT (name) DO UPDATE SET owner = excluded.owner RETURNING state`, s.name, s.owner).Scan(&text); err != nil {
			return fmt.Errorf("read aff_sinks: %w", err)
		}
		if text == nil {
			return nil
		}
		return json.Unmarshal(text, &state)
	})
	return state, err
}

// Save writes what was collected, and the state, in one transaction.
func (s *Sink) Save(ctx context.Context, state clickstream.State) error {
	text, err := json.Marshal(state)
	if err != nil {
		return err
	}
	err = pgx.BeginFunc(ctx, s.conn, func(tx pgx.Tx) error {
		var owner string
		if err := tx.QueryRow(ctx, `SELECT owner FROM aff_sinks WHERE name = $1 FOR UPDATE`, s.name).Scan(&owner); err != nil && !errors.Is(err, pgx.ErrNoRows) {
			return fmt.Errorf("read aff_sinks: %w", err)
		}
		if owner != s.owner {
			return fmt.Errorf("sink %s: %w", s.name, clickstream.ErrTakenOver)
		}
		if err := s.partitions(ctx, tx); err != nil {
			return err
		}
		rows := pgx.CopyFromSlice(len(s.clicks), func(i int) ([]any, error) { return values(&s.clicks[i]) })
		if _, err := tx.CopyFrom(ctx, pgx.Identifier{"aff_clicks"}, columns, rows); err != nil {
			return fmt.Errorf("copy clicks: %w", err)
		}
		_, err := tx.Exec(ctx, `UPDATE aff_sinks SET state = $2 WHERE name = $1`, s.name, text)
		return err
	})
	if err != nil {
		clear(s.days) // what this transaction made is gone
		return err
	}
	clear(s.clicks)
	s.clicks = s.clicks[:0]
	return nil
}

// partitions makes those of the days that are collected.
func (s *Sink) partitions(ctx context.Context, tx pgx.Tx) error {
	for i := range s.clicks {
		day := s.clicks[i].Time.Truncate(24 * time.Hour)
		if s.days[day] {
			continue
		}
		if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock(4711160001)`); err != nil {
			return err
		}
		statement := fmt.Sprintf(`CREATE TABLE IF NOT EXISTS %s PARTITION OF aff_clicks FOR VALUES FROM ('%s') TO ('%s')`,
			pgx.Identifier{"aff_clicks_" + day.Format("20060102")}.Sanitize(), day.Format(time.RFC3339), day.Add(24*time.Hour).Format(time.RFC3339))
		if _, err := tx.Exec(ctx, statement); err != nil {
			return fmt.Errorf("create a partition: %w", err)
		}
		s.days[day] = true
	}
	return nil
}

// values is a click as a row.
func values(c *clickstream.Click) ([]any, error) {
	parameters := make([]clickstream.Parameter, 0, len(c.Parameters))
	for _, p := range c.Parameters {
		parameters = append(parameters, clickstream.Parameter{Name: text(p.Name), Value: text(p.Value)})
	}
	labels := make([]clickstream.Label, 0, len(c.Labels))
	for _, l := range c.Labels {
		labels = append(labels, clickstream.Label{Name: text(l.Name), Reason: text(l.Reason)})
	}
	parametersJSON, err := list(parameters)
	if err != nil {
		return nil, err
	}
	labelsJSON, err := list(labels)
	if err != nil {
		return nil, err
	}
	return []any{
		c.Time, text(c.Node), c.Boot.String(), int64(c.Sequence), text(c.Region), c.Epoch.String(), c.Revision, text(c.Link), text(c.Affiliate),
		text(c.Campaign), text(c.Variant), int64(c.Rule), text(c.Destination), int32(c.Status), c.Method, c.Outcome.String(), c.Address.String(),
		text(c.UserAgent), text(c.Referrer), text(c.Languages), text(c.Host), text(c.Path), parametersJSON, labelsJSON, text(c.Country), int64(c.ASN),
	}, nil
}

// list is JSON, or nil for an empty one.
func list[T any](items []T) (any, error) {
	if len(items) == 0 {
		return nil, nil
	}
	text, err := json.Marshal(items)
	return string(text), err
}

// text is what PostgreSQL takes as text: UTF-8 without NUL.
func text(s string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
}

// Close ends the connection.
func (s *Sink) Close(ctx context.Context) {
	if s.conn != nil {
		_ = s.conn.Close(ctx) // nothing is under way
		s.conn = nil
	}
}
