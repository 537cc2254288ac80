module lab/pause

go 1.23
