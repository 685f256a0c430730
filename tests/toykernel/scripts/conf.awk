# The toy's conf: reads `config`, applies bool options with their dependencies and defaults from
# the Kconfig files, prints the result. Understands: source, config, bool, string, default, depends.
function fail(text) { print text > "/dev/stderr"; failed = 1; exit 1 }

function load(file,    line, number, word) {
	while ((getline line < (srctree "/" file)) > 0) {
		number++
		sub(/^[ \t]+/, "", line)
		split(line, word, /[ \t]+/)
		if (line == "" || line ~ /^#/ || word[1] == "mainmenu") continue
		else if (word[1] == "source") { gsub(/"/, "", word[2]); gsub(/\$\(SRCARCH\)/, srcarch, word[2]); load(word[2]) }
		else if (word[1] == "config") { symbol = word[2]; order[++count] = symbol }
		else if (word[1] == "bool") type[symbol] = "bool"
		else if (word[1] == "string") type[symbol] = "string"
		else if (word[1] == "default") preset[symbol] = word[2]
		else if (word[1] == "depends") needs[symbol] = word[3]
		else fail(file ":" number ": syntax error")
	}
	close(srctree "/" file)
}

BEGIN {
	load("Kconfig")
	while ((getline line < config) > 0)
		if (match(line, /^CONFIG_[A-Z0-9_]+=/)) {
			at = index(line, "=")
			asked[substr(line, 8, at - 8)] = substr(line, at + 1)
		} else if (line ~ /^# CONFIG_.* is not set$/) {
			split(line, part, " ")
			asked[substr(part[2], 8)] = "n"
		}
	for (i = 1; i <= count; i++) {
		symbol = order[i]
		value = symbol in asked ? asked[symbol] : preset[symbol]
		if (needs[symbol] != "" && final[needs[symbol]] != "y") continue
		if (type[symbol] == "bool" && value != "y") { print "# CONFIG_" symbol " is not set"; continue }
		if (value == "") value = "\"\""
		final[symbol] = value
		print "CONFIG_" symbol "=" value
	}
}
