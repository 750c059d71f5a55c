//go:build !linux

package dataplane

import (
	"context"

	"github.com/affleet/affleet/dataplane/internal/table"
)

// useHugePages is for Linux.
func useHugePages(context.Context, *table.Table) {}
