package settings

import (
	"fmt"
	"slices"
	"strings"
)

// known takes pairs by the names of their settings. A key that is unknown, empty, or given twice is
// an error. Of a key that is given twice, lib/pq takes the first in a URL, and all others the last.
func known(pairs []pair, where string) (map[string]string, error) {
	values := make(map[string]string)
	for _, p := range pairs {
		i := slices.IndexFunc(All, func(t Setting) bool {
			return p.key == t.Key() || t.alias != "" && p.key == prefix+t.alias
		})
		if i < 0 {
			return nil, fmt.Errorf("passbuddy: %s%s is unknown: did you mean %s?",
				clip(p.key), where, nearest(strings.ToLower(p.key), Setting.Key).Key())
		}
		name := All[i].name
		switch _, twice := values[name]; {
		case twice:
			return nil, fmt.Errorf("passbuddy: %s%s is given twice", All[i].Key(), where)
		case p.value == "":
			return nil, fmt.Errorf("passbuddy: %s%s has no value: leave it out for the default",
				p.key, where)
		}
		values[name] = p.value
	}
	return values, nil
}

// knownVariables takes the environment by the names of settings. An empty variable counts as not
// set. Others may have variables with our prefix: in Kubernetes a service called "passbuddy" sets
// PASSBUDDY_PORT in each pod. So only a variable that is a slip away from one of ours is an error.
func knownVariables(variables map[string]string) (map[string]string, error) {
	values := make(map[string]string)
	for _, t := range All {
		for _, v := range []string{t.Variable(), t.fallback} {
			if value := variables[v]; value != "" && values[t.name] == "" {
				values[t.name] = value
			}
		}
	}
	names := make([]string, 0, len(variables))
	for v, value := range variables {
		if strings.HasPrefix(v, variablePrefix) && value != "" {
			names = append(names, v)
		}
	}
	slices.Sort(names)
	for _, v := range names {
		like := nearest(v, Setting.Variable).Variable()
		if d := distance(v, like); d > 0 && d <= slips(v) {
			return nil, fmt.Errorf("passbuddy: the variable %s is unknown: did you mean %s? "+
				"If it is another program's, start this one without it", v, like)
		}
		if v == variablePrefix+"REDIS" {
			return nil, fmt.Errorf("passbuddy: the variable %s is unknown: did you mean %s?",
				v, All[0].Variable())
		}
	}
	return values, nil
}

// slips is how many slips of the pen are believed in a variable of that name.
func slips(variable string) int {
	if len(variable)-len(variablePrefix) <= 4 {
		return 1
	}
	return 2
}

func parseEnviron(environ []string) map[string]string {
	variables := make(map[string]string)
	for _, v := range environ {
		if name, value, ok := strings.Cut(v, "="); ok {
			variables[name] = value
		}
	}
	return variables
}

// nearest is the setting whose name is most like that one.
func nearest(like string, name func(Setting) string) Setting {
	return slices.MinFunc(All, func(a, b Setting) int {
		return distance(like, name(a)) - distance(like, name(b))
	})
}

// distance counts the slips between two names: a letter too many, missing, wrong, or two that
// changed places.
func distance(a, b string) int {
	a, b = a[:min(len(a), 64)], b[:min(len(b), 64)]
	before, last := make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row := make([]int, len(b)+1)
		row[0] = i
		for j := 1; j <= len(b); j++ {
			wrong := 1
			if a[i-1] == b[j-1] {
				wrong = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+wrong)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last = last, row
	}
	return last[len(b)]
}
