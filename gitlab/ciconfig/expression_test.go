package ciconfig

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func lookupIn(values map[string]string) func(string) (string, bool) {
	return func(key string) (string, bool) {
		v, ok := values[key]
		return v, ok
	}
}

// What GitLab documents and tests for expressions, and what its code does where neither says.
func TestExpressions(t *testing.T) {
	lookup := lookupIn(map[string]string{
		"WORD": "my variable", "PATH_": "a/path/variable/value", "FULL": "/a/full/path/value", "EMPTY": "", "BLANK": " \n",
		"abc": "abcde", "like": "/^ab.*/", "unlike": "/^at.*/", "LINES": "one\ntwo three\n", "one": "/b/",
	})
	for expression, want := range map[string]bool{
		`$WORD`:                  true,
		`$EMPTY`:                 false,
		`$BLANK`:                 false,
		`$NONE`:                  false,
		`"text"`:                 true,
		`""`:                     false,
		`null`:                   false,
		`true`:                   true,
		`false`:                  false,
		`/ab/`:                   true,
		`$WORD == "my variable"`: true,
		`"my variable" == $WORD`: true,
		`$WORD == 'my variable'`: true,
		`$WORD=="my variable"`:   true,
		`$WORD == null`:          false,
		`$EMPTY == null`:         false,
		`"" == $EMPTY`:           true,
		`$NONE == null`:          true,
		`null == $NONE`:          true,
		`$NONE == ""`:            false,
		`$NONE == $NEITHER`:      true,
		`$WORD != "my variable"`: false,
		`$WORD != null`:          true,
		`$EMPTY != null`:         true,
		`$NONE != null`:          false,
		`$WORD == $WORD`:         true,
		`"true" == true`:         false,

		`$WORD =~ /var.*e$/`:                  true,
		`$WORD =~ /^var.*/`:                   false,
		`$WORD =~ /VAR.*/i`:                   true,
		`$WORD =~ /VAR.*/`:                    false,
		`$WORD =~ /va\/r.*e$/`:                false,
		`$EMPTY =~ /var.*/`:                   false,
		`$NONE =~ /var.*/`:                    false,
		`$PATH_ =~ /path\/variable/`:          true,
		`$FULL =~ /^\/a\/full\/path\/value$/`: true,
		`$LINES =~ /two thr/`:                 true,
		`$LINES =~ /^two/`:                    false,
		`$LINES =~ /^two/m`:                   true,
		`$WORD !~ /var.*e$/`:                  false,
		`$WORD !~ /^var.*/`:                   true,
		`$EMPTY !~ /var.*/`:                   true,
		`$NONE !~ /var.*/`:                    true,
		`$WORD =~ $NONE`:                      false,
		`$WORD !~ $NONE`:                      true,

		// The right side may be a variable; one that is no /pattern/ matches when it contains the left side.
		`$abc =~ $like`:     true,
		`$abc =~ $unlike`:   false,
		`$abc !~ $unlike`:   true,
		`$abc =~ $one`:      true,
		`$abc =~ "abcde"`:   true,
		`$abc =~ "bcd"`:     false,
		`$abc =~ "xabcdex"`: true,
		`$abc =~ "/b.d/"`:   true,
		`$abc =~ $abc`:      true,

		// && and || return operands, for which the empty string is true.
		`$WORD && $EMPTY`:                       false,
		`$EMPTY && $WORD`:                       true,
		`$EMPTY || $WORD`:                       false,
		`$NONE || $WORD`:                        true,
		`$NONE && $WORD`:                        false,
		`"string" && null`:                      false,
		`null || "string"`:                      true,
		`$WORD =~ /my var/ && $EMPTY =~ /nope/`: false,
		`$EMPTY == "" && $WORD`:                 true,
		`$EMPTY == "" || $WORD`:                 true,
		`$WORD && null || $EMPTY == ""`:         true,

		// && binds tighter than ||, both bind looser than comparisons, parentheses decide.
		`$WORD == "a" || $EMPTY == "" && $NONE == null`:  true,
		`($WORD == "a" || $EMPTY == "") && $NONE == "x"`: false,
		`$WORD == "a" || $EMPTY == "" && $NONE == "x"`:   false,
		`(($WORD))`:                                                  true,
		`($WORD) && (null || $EMPTY == "")`:                          true,
		`("string" || "test") == "string"`:                           true,
		`("string" == ("test" && "string"))`:                         true,
		`("string" == ("test" || "string"))`:                         false,
		`("string" == "test" || "string")`:                           true,
		`("string" == ("string" || (("1" == "1") && ("2" == "3"))))`: true,
		`$WORD == "my variable" == true`:                             true,

		`!$NONE`:                       true,
		`!$WORD`:                       false,
		`!!$WORD`:                      true,
		`!$EMPTY && $WORD`:             true,
		`!($NONE == null)`:             false,
		`!/ab/`:                        false,
		`!$NONE == true`:               true, // ! binds tightest
		"\t$WORD \n== \"my variable\"": true,
	} {
		t.Run(expression, func(t *testing.T) {
			e, _, err := parseExpression(expression)
			require.NoError(t, err)
			require.Equal(t, want, e.matches(lookup))
		})
	}
}

func TestBadExpressions(t *testing.T) {
	for expression, want := range map[string]string{
		``:                                  "the expression is empty",
		`   `:                               "the expression is empty",
		`${VAR} == "x"`:                     "`${VAR}` is not part of an expression",
		`$VAR = "x"`:                        "`=` is not part of an expression",
		`$VAR == x`:                         "`x` is not part of an expression",
		`$VAR & $B`:                         "`&` is not part of an expression",
		`$VAR | $B`:                         "`|` is not part of an expression",
		`$VAR == "x`:                        "`\"x` is not part of an expression",
		`$VAR == 1`:                         "`1` is not part of an expression",
		`$[[ inputs.a ]] == "b"`:            "`$[[` is not part of an expression",
		`$VAR =~ /a/`:                       "`/a/` is not part of an expression",
		`$VAR =~ //`:                        "`//` is not part of an expression",
		`$VAR =~ /ab`:                       "`/ab` is not part of an expression",
		`$VAR =~ /ab/x`:                     "`x` is not part of an expression",
		`$VAR =~ /some ( thing/`:            "the regular expression /some ( thing/ is invalid: missing closing ): `some ( thing`",
		`$VAR =~ /(?=a)/`:                   "the regular expression /(?=a)/ is invalid: invalid or unsupported Perl syntax: `(?=`",
		`$VAR "text"`:                       "two values stand side by side without an operator between them",
		`== "x"`:                            "`==` has no operand on one side",
		`$VAR ==`:                           "`==` has no operand on one side",
		`$VAR &&`:                           "`&&` has no operand on one side",
		`!`:                                 "`!` has no operand",
		`$VAR == (`:                         "an opening parenthesis is not closed",
		`($VAR == "a"`:                      "an opening parenthesis is not closed",
		`$VAR == "a")`:                      "a closing parenthesis has no opening one",
		`()`:                                "the expression is empty",
		strings.Repeat("$A && ", 50) + "$A": "the expression has more than 99 parts",
	} {
		t.Run(expression, func(t *testing.T) {
			_, _, err := parseExpression(expression)
			require.EqualError(t, err, want)
		})
	}
	_, _, err := parseExpression(strings.Repeat("$A && ", 49) + "$A")
	require.NoError(t, err)
}
