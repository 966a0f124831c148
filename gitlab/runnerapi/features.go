package runnerapi

import (
	"reflect"
	"strings"
)

// FeaturesOf returns the features with these names (the JSON names); names that are not known are left out, so that a
// newer agent may have more of them.
func FeaturesOf(names []string) Features {
	var f Features
	set := reflect.ValueOf(&f).Elem()
	known := featureIndex()
	for _, n := range names {
		if i, ok := known[n]; ok {
			set.Field(i).SetBool(true)
		}
	}
	return f
}

// Names returns the JSON names of the features that are true, in the order of the struct.
func (f Features) Names() []string {
	var names []string
	v := reflect.ValueOf(f)
	for i := range v.NumField() {
		if v.Field(i).Bool() {
			names = append(names, jsonName(v.Type().Field(i)))
		}
	}
	return names
}

// Union returns what either has.
func (f Features) Union(other Features) Features {
	return combine(f, other, func(a, b bool) bool { return a || b })
}

// Intersection returns what both have.
func (f Features) Intersection(other Features) Features {
	return combine(f, other, func(a, b bool) bool { return a && b })
}

func combine(f, other Features, op func(a, b bool) bool) Features {
	v, o := reflect.ValueOf(&f).Elem(), reflect.ValueOf(other)
	for i := range v.NumField() {
		v.Field(i).SetBool(op(v.Field(i).Bool(), o.Field(i).Bool()))
	}
	return f
}

func featureIndex() map[string]int {
	t := reflect.TypeFor[Features]()
	index := make(map[string]int, t.NumField())
	for i := range t.NumField() {
		index[jsonName(t.Field(i))] = i
	}
	return index
}

func jsonName(f reflect.StructField) string {
	name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
	return name
}
