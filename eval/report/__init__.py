"""What a sweep found as documents: one HTML page, Markdown and CSV."""
