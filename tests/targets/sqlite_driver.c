// Runs SQL on a database in memory and prints the rows: linked with the amalgamation of SQLite.
#include <stdio.h>

#include "sqlite3.h"

static int show(void *unused, int count, char **values, char **names) {
    (void)unused;
    for (int i = 0; i < count; i++)
        printf("%s=%s ", names[i], values[i] ? values[i] : "NULL");
    return puts("") < 0;
}

static const char *const script[] = {
    "CREATE TABLE item(id INTEGER PRIMARY KEY, name TEXT NOT NULL, price REAL, parent REFERENCES item)",
    "CREATE UNIQUE INDEX by_name ON item(name, price)",
    "CREATE TABLE log(text, at INTEGER DEFAULT 0) ",
    "CREATE VIEW dear AS SELECT name, price FROM item WHERE price > 5 ORDER BY price DESC",
    "CREATE TRIGGER noted AFTER UPDATE ON item BEGIN INSERT INTO log(text) VALUES(old.name || '>' || new.name); END",
    "BEGIN",
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 60)"
    " INSERT INTO item SELECT i, printf('item %03d', i), i * 1.25, nullif(i / 2, 0) FROM n",
    "SAVEPOINT one",
    "DELETE FROM item WHERE id % 7 = 0",
    "ROLLBACK TO one",
    "COMMIT",
    "UPDATE item SET name = upper(name) WHERE id BETWEEN 10 AND 15",
    "INSERT INTO item VALUES(10, 'again', 1, 2)",
    "INSERT OR REPLACE INTO item VALUES(11, 'replaced', 2.5e10, NULL)",
    "SELECT count(*), sum(price), avg(price), min(name), max(name), group_concat(id, '-') FROM item WHERE id < 12",
    "SELECT a.name, b.name FROM item a LEFT JOIN item b ON a.parent = b.id WHERE a.id IN (3, 5, 61) ORDER BY 2, 1",
    "SELECT parent, count(*) c FROM item GROUP BY parent HAVING c > 1 ORDER BY c, parent LIMIT 4 OFFSET 1",
    "SELECT * FROM dear LIMIT 3",
    "SELECT text FROM log UNION SELECT name FROM item WHERE name LIKE '%9' EXCEPT SELECT 'x' LIMIT 5",
    "SELECT substr('abcdef', 2, 3), replace('aXbX', 'X', '--'), hex(zeroblob(3)), abs(-4.5), round(2.567, 1), 7 / 2, 7 "
    "% 3,"
    " typeof(1.0), coalesce(NULL, 'c'), instr('hello', 'l'), quote(x'0102'), 'a' GLOB '[a-c]', cast('12ab' AS INTEGER)",
    "SELECT date('2020-02-29', '+1 year'), strftime('%Y-%j', '2021-03-04'), julianday('2000-01-01')",
    "SELECT id, row_number() OVER (PARTITION BY parent % 2 ORDER BY price DESC) FROM item WHERE id < 6",
    "SELECT json_extract('{\"a\":[1,2,{\"b\":\"c\"}]}', '$.a[2].b'), json_array(1, 'x', NULL)",
    "SELECT CASE WHEN id > 3 THEN 'big' ELSE 'small' END, EXISTS(SELECT 1 FROM log) FROM item WHERE id IN (2, 4)",
    "EXPLAIN QUERY PLAN SELECT * FROM item WHERE name = 'x' OR id = 3",
    "ALTER TABLE log RENAME COLUMN at TO moment",
    "ALTER TABLE log ADD COLUMN extra DEFAULT 'none'",
    "ANALYZE",
    "PRAGMA integrity_check",
    "PRAGMA table_info(item)",
    "REINDEX item",
    "SELECT broken FROM nowhere",
    "DROP TABLE log",
};

int main(void) {
    sqlite3 *database;
    if (sqlite3_open(":memory:", &database))
        return 1;
    for (unsigned i = 0; i < sizeof script / sizeof *script; i++) {
        char *error = NULL;
        if (sqlite3_exec(database, script[i], show, NULL, &error))
            printf("error: %s\n", error);
        sqlite3_free(error);
    }
    printf("%s\n", sqlite3_libversion());
    return sqlite3_close(database);
}
