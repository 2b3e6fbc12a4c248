"""Community data: taken in, curated by the charter's data policy, and accounted for without a word of it."""
