package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

func exitCodesTopic() *cobra.Command {
	return &cobra.Command{
		Use:   "exit-codes",
		Short: "What the exit codes mean",
		Long: `affctl ends with one of these codes:

  0  done
  1  any other error: refused by the control plane, a file that cannot be read
  2  wrong arguments; nothing was done
  3  an import or apply that wrote some rows and not others
  4  not found
  5  conflict: it exists already, or somebody else changed it (etag)
  6  no answer: the control plane or NATS is down or busy, try again
  7  the time ran out, in --timeout or --wait-timeout

After 6 and 7, and where affctl is interrupted, what was being written may or
may not have been, if the message says so: look whether it is before you repeat
it. An import can be repeated.`,
	}
}

func connectionTopic() *cobra.Command {
	return &cobra.Command{
		Use:   "connection",
		Short: "How affctl finds the control plane and NATS",
		Long: `Every command takes these flags. A flag wins over its variable, the variable
over the context, and the context over the default.

  --server HOST:PORT  AFFCTL_SERVER   the control plane (` + defaultServer + `)
  --nats URL          AFFCTL_NATS     for clicks (` + defaultNATS + `)
  --context NAME      AFFCTL_CONTEXT  a context of the config file, which is
                                      $AFFCTL_CONFIG or
                                      ~/.config/affctl/config.yaml
  --timeout DURATION                  for one call (15s); streams have none

Other variables: AFFCTL_USER is recorded as who wrote (default: $USER at this
host); NO_COLOR turns colours off.`,
	}
}

// setHelp replaces cobra's help by one that fits a screen.
func setHelp(root *cobra.Command) {
	root.SetHelpFunc(func(cmd *cobra.Command, _ []string) { fmt.Fprint(cmd.OutOrStdout(), helpText(cmd)) })
	root.SetUsageFunc(func(cmd *cobra.Command) error {
		_, err := fmt.Fprint(cmd.OutOrStderr(), helpText(cmd))
		return err
	})
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	for _, cmd := range root.Commands() {
		if cmd.Name() == "completion" {
			cmd.Short = "Print what teaches a shell to complete affctl"
			cmd.Long = "Print what teaches a shell to complete the commands, flags and names of affctl."
			cmd.Example = "  source <(affctl completion bash)\n  affctl completion zsh > ~/.zfunc/_affctl"
			cmd.Args, cmd.RunE = cobra.ArbitraryArgs, group
		}
	}
}

func helpText(cmd *cobra.Command) string {
	var b strings.Builder
	text := strings.TrimSpace(cmd.Long)
	if text == "" {
		text = cmd.Short + "."
	}
	fmt.Fprintln(&b, text)
	if cmd.IsAdditionalHelpTopicCommand() {
		return b.String()
	}
	fmt.Fprintf(&b, "\nUsage: %s\n", useLine(cmd))
	if cmd.Example != "" {
		fmt.Fprintf(&b, "\nExamples:\n%s\n", strings.TrimRight(cmd.Example, "\n"))
	}
	if cmd.HasAvailableSubCommands() {
		fmt.Fprint(&b, "\nCommands:\n", commandList(cmd))
	}
	if flags := flagList(cmd); flags != "" {
		fmt.Fprint(&b, "\nFlags:\n", flags)
	}
	if cmd.HasParent() {
		fmt.Fprint(&b, "\nAlso: --server --nats --context --timeout (see affctl help connection)\n")
	} else {
		fmt.Fprint(&b, "\nHelp: affctl COMMAND --help, affctl help connection, affctl help exit-codes\n")
	}
	return b.String()
}

func useLine(cmd *cobra.Command) string {
	if cmd.HasSubCommands() {
		return cmd.CommandPath() + " COMMAND"
	}
	return strings.TrimSuffix(cmd.UseLine(), " [flags]")
}

func commandList(cmd *cobra.Command) string {
	var b strings.Builder
	for _, child := range cmd.Commands() {
		if child.IsAvailableCommand() && child.Name() != "help" {
			fmt.Fprintf(&b, "  %-11s %s\n", child.Name(), child.Short)
		}
	}
	return b.String()
}

// flagList is a line or more for each flag of a command, in 80 columns.
func flagList(cmd *cobra.Command) string {
	const width = 80
	var names, usages []string
	longest := 0
	cmd.Flags().SortFlags = false
	cmd.LocalNonPersistentFlags().VisitAll(func(f *pflag.Flag) {
		if f.Name == "help" || f.Hidden {
			return
		}
		value, usage := pflag.UnquoteUsage(f)
		name := "      --" + f.Name
		if f.Shorthand != "" {
			name = "  -" + f.Shorthand + ", --" + f.Name
		}
		switch {
		case f.Value.Type() == "bool":
		case f.NoOptDefVal != "":
			name += "[=" + value + "]"
		default:
			name += " " + strings.ToUpper(value)
		}
		usage = strings.TrimPrefix(usage, value+": ")
		if f.DefValue != "" && f.DefValue != "false" && f.DefValue != "0" && f.DefValue != "0s" && f.DefValue != "[]" {
			usage += " (" + f.DefValue + ")"
		}
		names, usages = append(names, name), append(usages, usage)
		longest = max(longest, len(name))
	})
	var b strings.Builder
	for i, name := range names {
		column := longest + 3
		fmt.Fprintf(&b, "%-*s", column, name)
		at := column
		for n, word := range strings.Fields(usages[i]) {
			if at+1+len(word) > width {
				fmt.Fprintf(&b, "\n%*s", column, "")
				at = column
			} else if n > 0 {
				b.WriteByte(' ')
				at++
			}
			b.WriteString(word)
			at += len(word)
		}
		b.WriteByte('\n')
	}
	return b.String()
}
